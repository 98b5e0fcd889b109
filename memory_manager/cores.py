"""When background threads of the server may have the cores of a CPU device, beside a worker's steps.

A thread that reads weights or touches memory keeps a core for as long as one system call takes, whatever its
priority, and meanwhile all threads of a step wait for the one that it displaced. So a step sets a signal to
stop, and clears it when the step has ended and, if a background thread waits, for a while between two of its
layers.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Sequence

__all__ = ["CoreSignal", "stand_back", "wait_clear"]

_ASK_AGAIN_S = 0.025  # a thread that slept through a turn has to ask for the next one
_MAX_ASKS = 10  # a layer may take longer, and a step may hang


class CoreSignal:
    """A signal between two processes: clear while anybody may use the cores of the CPU device. Clear at
    first.

    Args:
        clear_fd: an eventfd that is readable while the signal is clear.
        wanted_fd: an eventfd that is readable after somebody has asked for the cores.
    """

    def __init__(self, clear_fd: int, wanted_fd: int) -> None:
        self._clear_fd = clear_fd
        self._wanted_fd = wanted_fd

    @classmethod
    def make(cls) -> CoreSignal:
        """Makes a new signal, whose descriptors the other process inherits."""
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
        return cls(os.eventfd(1, flags), os.eventfd(0, flags))

    @property
    def descriptors(self) -> tuple[int, int]:
        """The two descriptors that the constructor takes, in its order."""
        return self._clear_fd, self._wanted_fd

    def stop(self) -> None:
        """Reserves the cores for a step."""
        _drain(self._clear_fd)

    def clear(self) -> None:
        """Lets anybody use the cores."""
        os.eventfd_write(self._clear_fd, 1)

    def want(self) -> None:
        """Asks for the cores."""
        os.eventfd_write(self._wanted_fd, 1)

    def take_wanted(self) -> bool:
        """Whether somebody has asked for the cores since the last call of this method."""
        return _drain(self._wanted_fd)

    def close(self) -> None:
        """Closes both descriptors. A later call of any method fails, and never reaches a descriptor that the
        system has since given to something else."""
        for fd in self.descriptors:
            os.close(fd)
        self._clear_fd = self._wanted_fd = -1


def wait_clear(signals: Sequence[CoreSignal]) -> None:
    """Waits until one of the signals is clear; returns at once if there are none, and after a quarter of a
    second in any case."""
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
    """Makes the calling thread, for good, leave the cores to any other thread that wants them.

    On a CPU device the steps of resident models need the very cores that read and touch memory for other
    models. A step that comes back while a ``CoreSignal`` is clear so has its cores again at once.
    """
    # Linux has a scheduling policy per thread. If a sandbox refuses the call or lacks the policy, steps are
    # slower.
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _drain(fd: int) -> bool:
    """Sets an eventfd to 0; returns whether it was above 0."""
    with contextlib.suppress(BlockingIOError):
        return os.eventfd_read(fd) > 0
    return False
