"""How long work of the registry tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Progress", "no_progress"]

Progress = Callable[[str, int, int], None]
"""Called with (stage, bytes done, bytes in all); a total of 0 means that it is not known yet."""


def no_progress(stage: str, done_bytes: int, total_bytes: int) -> None:
    """A ``Progress`` for callers that show none."""
