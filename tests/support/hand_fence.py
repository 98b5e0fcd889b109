"""A fence between steps and pages that a test lets pass by hand."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["HandFence"]


class HandFence:
    """Passes when it is told to."""

    def __init__(self) -> None:
        self.num_marked = self.num_passed = 0

    def mark(self) -> Callable[[], bool]:
        self.num_marked += 1
        number = self.num_marked
        return lambda: self.num_passed >= number
