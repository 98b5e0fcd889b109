"""The tie of a process to the one that started it: the kernel ends the first when the second is gone."""

from __future__ import annotations

import ctypes
import os
import signal

__all__ = ["die_with_parent"]

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int | None = None) -> None:
    """Asks the kernel to kill this process as soon as its parent has ended, however that happened.

    Args:
        parent_pid: the parent's process id, if the parent may be gone already; this process ends at once then.

    Raises:
        OSError: the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if parent_pid not in (None, os.getppid()):
        os.kill(os.getpid(), signal.SIGKILL)
