"""Work that must not be felt by what serves: threads that stand back."""

from __future__ import annotations

import contextlib
import os

__all__ = ["stand_back"]


def stand_back() -> None:
    """Leaves the cores to others first, for good; on Linux each thread has its own scheduling policy.

    On a CPU device the steps of resident models need the very cores that read and touch memory for others. What these
    have while a ``CoreSignal`` is clear, a step that comes back has again at once.
    """
    with contextlib.suppress(OSError):  # a sandbox may refuse it, or not know the policy: then it is felt
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
