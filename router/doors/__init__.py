"""Doors: each protocol that clients speak."""
