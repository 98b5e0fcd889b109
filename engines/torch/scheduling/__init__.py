"""Scheduling: which sequences a step runs, and what becomes of them."""
