"""The router: front doors, tenancy, dispatch and failover."""
