"""Policies: pure functions from records and a clock to decisions."""
