"""Progress of the registry's long work, such as downloads and copies."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Progress", "no_progress"]

Progress = Callable[[str, int, int], None]
"""Called with the stage, the bytes done and the bytes in all; a total of 0 is not known yet."""


def no_progress(stage: str, done_bytes: int, total_bytes: int) -> None:
    """A ``Progress`` for callers that show none."""
