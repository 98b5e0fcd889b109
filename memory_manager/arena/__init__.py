"""Arenas: address ranges and the physical pages under them. Runs in workers."""
