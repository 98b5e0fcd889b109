"""When background threads of the server may have the cores of a CPU device, beside a worker's steps.

A thread that reads weights or touches memory keeps a core for as long as one system call takes, whatever its
priority, and of a step all threads wait for the one that it displaced. So a step sets a signal to stop, and clears it
when it has ended and, where somebody waits, for a while between two of its layers.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Sequence

__all__ = ["CoreSignal", "stand_back", "wait_clear"]

_ASK_AGAIN_S = 0.025  # who slept through a turn has to ask for the next
_MAX_ASKS = 10  # a layer may take longer, and a step may hang


class CoreSignal:
    """A signal between two processes, clear at first.

    Args:
        clear_fd: an eventfd, readable while the signal is clear.
        wanted_fd: another, readable when somebody waits.
    """

    def __init__(self, clear_fd: int, wanted_fd: int) -> None:
        self._clear_fd = clear_fd
        self._wanted_fd = wanted_fd

    @classmethod
    def make(cls) -> CoreSignal:
        """A new one. The other process inherits its descriptors."""
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
        return cls(os.eventfd(1, flags), os.eventfd(0, flags))

    @property
    def descriptors(self) -> tuple[int, int]:
        """What the constructor takes."""
        return self._clear_fd, self._wanted_fd

    def stop(self) -> None:
        """The cores are a step's now."""
        _drain(self._clear_fd)

    def clear(self) -> None:
        """They are anybody's."""
        os.eventfd_write(self._clear_fd, 1)

    def want(self) -> None:
        """Asks for them."""
        os.eventfd_write(self._wanted_fd, 1)

    def take_wanted(self) -> bool:
        """Whether somebody has asked since the last call."""
        return _drain(self._wanted_fd)

    def close(self) -> None:
        """A call that comes later is an error, and writes to nobody else's descriptor."""
        for fd in self.descriptors:
            os.close(fd)
        self._clear_fd = self._wanted_fd = -1


def wait_clear(signals: Sequence[CoreSignal]) -> None:
    """Until one of the signals is clear; returns at once where there are none, and after a quarter of a second in
    any case."""
    if not signals:
        return
    poll = select.poll()
    for signal in signals:
        poll.register(signal.descriptors[0], select.POLLIN)
    if not poll.poll(0):
        for _ in range(_MAX_ASKS):
            for signal in signals:
                signal.want()
            if poll.poll(1e3 * _ASK_AGAIN_S):
                return


def stand_back() -> None:
    """Leaves the cores to others first, for good; on Linux each thread has its own scheduling policy.

    On a CPU device the steps of resident models need the very cores that read and touch memory for others. What these
    have while a ``CoreSignal`` is clear, a step that comes back has again at once.
    """
    with contextlib.suppress(OSError):  # a sandbox may refuse it, or not know the policy: then it is felt
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _drain(fd: int) -> bool:
    """Sets an eventfd to 0; whether it was more."""
    with contextlib.suppress(BlockingIOError):
        return os.eventfd_read(fd) > 0
    return False
