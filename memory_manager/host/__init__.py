"""Host memory: warm copies of weights in sealed files that outlive workers. Runs in the server."""
