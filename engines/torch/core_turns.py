"""Steps and copies of weights take turns at the cores of a CPU device.

Each of them keeps every core busy. Beside each other, the threads of a step wait at every parallel part for one that
a copy has displaced, and both together take longer than one after the other: a token that takes 58 ms and a wake that
takes 50 ms were done after 142 ms, and the token came last. So a copy has the cores between two layers of a step,
again and again for a part of the time that the step has had them since. Where nobody steps, nothing holds it up, and
copies share the cores as they come.

The server's background threads have such turns too, where no copy waits for one.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from memory_manager.core_signal import CoreSignal

__all__ = ["CoreTurns"]

_STEP_TURN_S = 0.02  # at least, where others wait: several of their pieces fit into a part of it
_BACKGROUND_SHARE = 0.15


class CoreTurns:
    """Whose turn it is. Any number of copies may ask for one, and one thread that steps.

    Args:
        signal: to the server's background threads; None where they need no core of this device.
        clock: in seconds.
        sleep: for so many of them.

    Attributes:
        num_copies_waiting: for their turn.
    """

    def __init__(
        self,
        signal: CoreSignal | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._signal = signal
        self._clock = clock
        self._sleep = sleep
        self._changed = threading.Condition()
        self._stepping = False
        self._step_waits = False
        self._stepped_last = False
        self._num_copying = 0
        self.num_copies_waiting = 0
        self._given_way_s = -math.inf  # when others last had a turn
        self._given_s = 0.0

    @contextmanager
    def step(self) -> Iterator[None]:
        """The cores for a step: after the copies that have them, and after one that has waited long enough."""
        self._begin_step()
        if self._signal is not None:
            self._signal.stop()
        try:
            yield
        finally:
            if self._signal is not None:
                self._signal.clear()
            self._end_step()

    def give_way(self) -> None:
        """Lets others who wait have their turn, where the step has had the cores for a while. Within ``step``."""
        if self._due_in_s():
            return
        before_s = self._clock()
        if self.num_copies_waiting:
            self._end_step()
            self._begin_step()
        elif self._signal is not None and self._signal.take_wanted():
            self._signal.clear()
            self._sleep(_BACKGROUND_SHARE * _STEP_TURN_S)
            self._signal.stop()
            self._given_way_s = self._clock()
        self._given_s += self._clock() - before_s

    def step_clock(self) -> float:
        """The clock, without what steps have given way for so far."""
        return self._clock() - self._given_s

    @contextmanager
    def copy(self, share: float) -> Iterator[Callable[[], bool]]:
        """The cores for a copy: at once where nobody steps, and else after the step has had them for its turn.

        Args:
            share: of the step's turn, after which the copy's is over where a step waits.

        Yields:
            Whether it is over; any thread may ask. What is left takes another turn.
        """
        with self._changed:
            asked_s = self._clock()
            self.num_copies_waiting += 1
            while not self._may_copy():
                # What follows a step at once is the next one, or nothing: then nobody else would say that it is due.
                self._changed.wait(None if self._stepping or self._step_waits else self._due_in_s())
            self.num_copies_waiting -= 1
            self._num_copying += 1
            began_s = self._clock()
            ends_s = began_s + share * max(_STEP_TURN_S, began_s - max(asked_s, self._given_way_s))
            self._stepped_last = False
        try:
            yield lambda: self._step_waits and self._clock() >= ends_s
        finally:
            with self._changed:
                self._num_copying -= 1
                self._given_way_s = self._clock()
                self._changed.notify_all()

    def _due_in_s(self) -> float:
        """Until the others' turn comes before the step's; 0 where it does."""
        return max(0.0, self._given_way_s + _STEP_TURN_S - self._clock())

    def _may_copy(self) -> bool:
        if self._stepping:
            return False
        if self._num_copying:
            return not self._step_waits
        return not self._due_in_s() or not (self._step_waits or self._stepped_last)

    def _begin_step(self) -> None:
        with self._changed:
            self._step_waits = True
            while self._num_copying or (self.num_copies_waiting and not self._due_in_s()):
                self._changed.wait()
            self._step_waits = False
            self._stepping = self._stepped_last = True

    def _end_step(self) -> None:
        with self._changed:
            self._stepping = False
            self._changed.notify_all()
