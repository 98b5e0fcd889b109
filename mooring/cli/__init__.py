"""The ``mooring`` command. Everything that acts on a server speaks its admin API and nothing else."""

from mooring.cli.app import app, main

__all__ = ["app", "main"]
