"""The registry of models, versions, variants, deployments and tenants, and the artifact store."""
