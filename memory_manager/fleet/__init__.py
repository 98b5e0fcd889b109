"""The manager's state and actions: devices, deployments, leases, moves. Runs in the server."""
