"""How long sequences wait before a step begins with them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

__all__ = ["QueueTimes"]


class QueueTimes:
    """Times of one model's sequences, from submission to first admission; told with the first token.

    A preemption changes nothing: what was begun with has been begun with.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since_s: dict[int, float] = {}  # of those that wait
        self._waited_s: dict[int, float] = {}  # of those that were admitted and have no token yet

    def submitted(self, sequence_id: int) -> None:
        self._since_s[sequence_id] = self._clock()

    def admitted(self, sequence_id: int) -> None:
        since_s = self._since_s.pop(sequence_id, None)
        if since_s is not None:
            self._waited_s[sequence_id] = self._clock() - since_s

    def take(self, sequence_ids: Iterable[int]) -> dict[int, float]:
        """Of those among these that have their first token now; forgotten with this."""
        if not self._waited_s:
            return {}
        return {number: self._waited_s.pop(number) for number in sequence_ids if number in self._waited_s}

    def forget(self, sequence_id: int) -> None:
        """It ended."""
        self._since_s.pop(sequence_id, None)
        self._waited_s.pop(sequence_id, None)
