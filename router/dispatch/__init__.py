"""Dispatch: which replica runs a request, and what happens when its worker dies."""
