"""Work that must not be felt by what serves: threads that stand back."""

from __future__ import annotations

import os

__all__ = ["stand_back"]

_NICENESS = 19  # what idle cores have to spare, and a few percent of busy ones


def stand_back() -> None:
    """Lowers the priority of the calling thread for good; on Linux each thread has its own.

    On a CPU device the steps of resident models need the very cores that read, touch and copy memory for others.
    """
    os.nice(_NICENESS)
