"""Waiting for what other threads and processes do."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["until"]


def until(
    holds: Callable[[], object], what: str = "what the test waits for", timeout_s: float = 20.0
) -> None:
    """Returns as soon as it holds; fails where it does not in time.

    Args:
        what: holds then, for who reads that it does not.
    """
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.01)
