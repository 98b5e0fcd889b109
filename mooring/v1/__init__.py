"""Stubs generated from proto/mooring/v1 by `make proto`."""
