"""Engines: the software that executes replicas, and the worker processes that run it."""
