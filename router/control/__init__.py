"""The control plane: deployments, the journal, retries of what failed."""
