"""Readings of devices and of other processes' memory. Runs in the server."""
