"""Lets steps and copies of weights take turns at the cores of a CPU device.

Steps and copies each keep every core busy. If both run at once, the threads of a step wait at every parallel
part for one that a copy has displaced, and both together take longer than one after the other: a token that
takes 58 ms and a wake that takes 50 ms were done after 142 ms, and the token came last. So a copy has the
cores between two layers of a step, again and again, for a part of the time that the step has had them since.
If no step runs, nothing holds a copy up, and copies share the cores as they come.

The server's background threads have such turns too, if no copy waits for one.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from memory_manager.cores import CoreSignal

__all__ = ["CoreTurns"]

_STEP_TURN_S = 0.02  # least turn of a step if others wait: several pieces of a copy fit into a part of it
_BACKGROUND_SHARE = 0.15
_LOOK_AGAIN_S = 0.005  # asking costs microseconds, and layers of a small model take few


class CoreTurns:
    """Decides whose turn it is. Any number of copies may ask for a turn, and one thread that steps.

    Args:
        signal: the signal to the server's background threads; None if they need no core of this device.
        clock: in seconds.
        sleep: sleeps for a number of seconds.

    Attributes:
        num_copies_waiting: copies that wait for their turn.
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
        self._looked_s = -math.inf  # when steps last asked, or could have, whether the server's threads wait
        self._given_s = 0.0  # seconds that steps have given way for, in all

    @contextmanager
    def step(self) -> Iterator[None]:
        """Holds the cores for a step: waits for copies that have them, and for a copy that has waited long
        enough."""
        self._begin_step()
        if self._signal is not None:
            self._signal.stop()
        self._looked_s = max(self._looked_s, self._clock() - _STEP_TURN_S)
        try:
            yield
        finally:
            if self._signal is not None:
                self._signal.clear()
            self._end_step()

    def give_way(self) -> None:
        """Lets others who wait have their turn, if the step has had the cores for a while. Call it within
        ``step``."""
        if self._due_in_s():
            return
        before_s = self._clock()
        if self.num_copies_waiting:
            with self._changed:  # a copy that begins now sees that the step waits
                self._end_step()
                self._begin_step()
        elif self._signal is not None:
            self._clear_if_wanted(self._signal)
        self._given_s += self._clock() - before_s

    def step_clock(self) -> float:
        """The clock, less the time that steps have given way for so far."""
        return self._clock() - self._given_s

    @contextmanager
    def copy(self, share: float) -> Iterator[Callable[[], bool]]:
        """Holds the cores for a copy: at once if no step runs, else after the step has had them for its turn.

        Args:
            share: length of the copy's turn as a share of the step's, if a step waits.

        Yields:
            A function that tells whether the turn is over; any thread may call it. The rest of the copy takes
            another turn.
        """
        with self._changed:
            asked_s = self._clock()
            self.num_copies_waiting += 1
            while not self._may_copy():
                # After a step there may be no further step to wake this copy when it is due.
                after_step = self._stepped_last and not self._stepping
                self._changed.wait(self._due_in_s() if after_step else None)
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

    def _clear_if_wanted(self, signal: CoreSignal) -> None:
        unseen_s = self._clock() - self._looked_s
        if unseen_s < _LOOK_AGAIN_S:
            return
        if signal.take_wanted():
            signal.clear()
            self._sleep(_BACKGROUND_SHARE * max(_STEP_TURN_S, unseen_s))
            signal.stop()
            self._given_way_s = self._clock()
        self._looked_s = self._clock()

    def _due_in_s(self) -> float:
        """Seconds until the others' turn comes before the step's; 0 if it does now."""
        return max(0.0, self._given_way_s + _STEP_TURN_S - self._clock())

    def _may_copy(self) -> bool:
        if self._stepping:
            return False
        return not self._due_in_s() if self._stepped_last else not self._step_waits

    def _begin_step(self) -> None:
        with self._changed:
            self._step_waits = True
            while self._num_copying or (self._stepped_last and self._is_copy_due()):
                self._changed.wait()
            self._step_waits = False
            self._stepping = self._stepped_last = True

    def _is_copy_due(self) -> bool:
        return self.num_copies_waiting > 0 and not self._due_in_s()

    def _end_step(self) -> None:
        with self._changed:
            self._stepping = False
            self._changed.notify_all()
