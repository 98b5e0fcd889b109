"""The web UI: a process of its own, which speaks to a server's admin API and to nothing else."""
