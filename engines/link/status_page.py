"""The status page: figures of a worker that it rewrites at every step, and that the server reads without asking.

It lies in memory that the two share (``engines.link.worker_memory``): a worker that hangs answers no call, but its
page can still be read. Each figure is one aligned word and is written whole; two figures may be a step apart. A
figure is added as a further field of ``_Figures``, up to ``StatusPage.NUM_BYTES``.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

__all__ = ["StatusPage", "StepProgress"]


class StepProgress(NamedTuple):
    """How far a worker's steps are.

    Attributes:
        num_steps: steps that have ended in this life.
        began_s: when the running step began, on the monotonic clock of the machine; 0 if none runs.
        busy_s: seconds that those which have ended took.
    """

    num_steps: int
    began_s: float
    busy_s: float = 0.0

    def busy_until_s(self, now_s: float) -> float:
        """Seconds of steps until ``now_s``, those of the running one included."""
        return self.busy_s + (max(0.0, now_s - self.began_s) if self.began_s else 0.0)


class _Figures(ctypes.Structure):
    _fields_ = (
        ("num_steps", ctypes.c_uint64),
        ("step_began_s", ctypes.c_double),
        ("busy_s", ctypes.c_double),
    )


class StatusPage:
    """The page of one life of a worker, for the one that writes and the one that reads.

    Args:
        memory: ``NUM_BYTES`` writable bytes, zero at first, aligned to 8.
    """

    NUM_BYTES = 4096

    def __init__(self, memory: memoryview) -> None:
        self._figures = _Figures.from_buffer(memory)

    def begin_step(self, now_s: float) -> None:
        """Notes that a step begins at ``now_s``, of ``time.monotonic``."""
        self._figures.step_began_s = now_s

    def end_step(self, now_s: float) -> None:
        """Notes that the running step has ended at ``now_s``."""
        figures = self._figures
        began_s, figures.step_began_s = figures.step_began_s, 0.0
        figures.busy_s += now_s - began_s
        figures.num_steps += 1

    def progress(self) -> StepProgress:
        """Reads how far the steps are."""
        figures = self._figures
        return StepProgress(figures.num_steps, figures.step_began_s, figures.busy_s)
