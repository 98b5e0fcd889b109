"""Rounding of figures to what is worth showing."""

from __future__ import annotations

__all__ = ["short"]


def short(value: float) -> float:
    """A figure with three significant places, and no more than three after the point; a count as it is."""
    if isinstance(value, int):
        return value
    return round(float(f"{value:.3g}"), 3)
