"""Steps and copies of weights take turns at the cores of a CPU device.

Each of them keeps every core busy. Beside each other, the threads of a step wait at every parallel part for one that
a copy has displaced, and both together take longer than one after the other: a token that takes 58 ms and a wake that
takes 50 ms were done after 142 ms, and the token came last. So a copy has the cores between two layers of a step,
again and again for a part of the time that the step has had them since. Where nobody steps, nothing holds it up, and
copies share the cores as they come.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["CoreTurns"]

_STEP_TURN_S = 0.03  # at most, where a copy waits: several of its pieces fit into a part of it


class CoreTurns:
    """Whose turn it is. Any number of copies may ask for one, and one thread that steps.

    Args:
        clock: in seconds.

    Attributes:
        num_copies_waiting: for their turn.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._stepping = False
        self._num_copying = 0
        self._step_waits = False
        self.num_copies_waiting = 0
        self._step_was_last = False
        self._step_began_s = 0.0
        self._step_turn_s = _STEP_TURN_S
        self._given_s = 0.0

    @contextmanager
    def step(self) -> Iterator[None]:
        """The cores for a step: after the copy that has them, and after one that has waited for a step."""
        self._begin_step()
        try:
            yield
        finally:
            self._end_step()

    def give_way(self) -> None:
        """Lets a copy that waits have its turn, where the step has had the cores for a while. Within ``step``."""
        if self.num_copies_waiting and self._clock() - self._step_began_s >= _STEP_TURN_S:
            gave_way_s = self._clock()
            self._end_step()
            self._begin_step()
            self._given_s += self._step_began_s - gave_way_s

    def step_clock(self) -> float:
        """The clock, without what steps have given way for so far."""
        return self._clock() - self._given_s

    @contextmanager
    def copy(self, share: float) -> Iterator[Callable[[], bool]]:
        """The cores for a copy, after the step that has them, and after one that has waited for a copy.

        Args:
            share: of the step's turn, after which the copy's is over where a step waits.

        Yields:
            Whether it is over; any thread may ask. What is left takes another turn.
        """
        with self._changed:
            self.num_copies_waiting += 1
            while self._stepping or (self._step_waits and not self._step_was_last):
                self._changed.wait()
            self.num_copies_waiting -= 1
            self._num_copying += 1
            self._step_was_last = False
        ends_s = self._clock() + share * self._step_turn_s
        try:
            yield lambda: self._step_waits and self._clock() >= ends_s
        finally:
            with self._changed:
                self._num_copying -= 1
                self._changed.notify_all()

    def _begin_step(self) -> None:
        with self._changed:
            self._step_waits = True
            while self._num_copying or (self.num_copies_waiting and self._step_was_last):
                self._changed.wait()
            self._step_waits = False
            self._stepping = self._step_was_last = True
            self._step_began_s = self._clock()

    def _end_step(self) -> None:
        with self._changed:
            self._step_turn_s = min(_STEP_TURN_S, self._clock() - self._step_began_s)
            self._stepping = False
            self._changed.notify_all()
