"""The router: front doors, tenancy and dispatch."""
