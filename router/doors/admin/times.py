"""Times as the admin API tells them."""

from __future__ import annotations

from datetime import UTC, datetime

__all__ = ["utc"]


def utc(at_s: float) -> datetime:
    """A time in UTC. ``at_s``: seconds of the Unix epoch."""
    return datetime.fromtimestamp(at_s, UTC)
