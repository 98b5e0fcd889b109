"""Attacks on a running server, each at its worst size, beside a client that must not feel them."""
