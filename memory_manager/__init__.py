"""Devices, ledger, arena, KV pool, host cache, and the planner and controller of residency."""
