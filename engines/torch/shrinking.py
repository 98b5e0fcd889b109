"""A smaller KV lease, applied in turns between the steps."""

from __future__ import annotations

import time
from collections.abc import Callable

from memory_manager.kv.block_store import BlockStore
from memory_manager.kv.pool import KVPool

__all__ = ["KVShrinking"]

_SHORTEST_TURN_S = 4e-3
_LONGEST_TURN_S = 0.05  # a stream's reader sees no more than that
_PAGES_AT_ONCE = 4  # a copy of so many, if blocks have to move, takes no longer than a turn
_LEAVING_AT_ONCE = 64  # to unmap these takes a millisecond


class KVShrinking:
    """Takes the KV of a worker down to its lease, in each turn for about as long as a step takes at most.

    Pages that are free leave first, then those of idle blocks; then blocks are moved together; then sequences of
    models that sleep are preempted, and at last those that run, one after the other. What is given up leaves as soon
    as no step can touch it any more.

    Args:
        pool: whose limit is the lease.
        cache: over it.
        preempt: preempts one sequence, given how many pages are wanted; False if none holds any. Called only while
            pages are wanted that neither idle blocks nor moves can give.
        clock: in seconds.
    """

    def __init__(
        self,
        pool: KVPool,
        cache: BlockStore,
        preempt: Callable[[int], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = pool
        self._cache = cache
        self._preempt = preempt
        self._clock = clock
        self._has_more = False

    @property
    def is_under_way(self) -> bool:
        """Whether more memory is held than the lease allows."""
        return self._pool.pages_over_limit > 0

    @property
    def has_more(self) -> bool:
        """Whether the last turn ended for want of time, and the next one has something to do at once."""
        return self._has_more and self.is_under_way

    def let_leave(self) -> None:
        """Lets pages go that are free already, as many as take no time that a step would notice."""
        self._pool.let_leave(_LEAVING_AT_ONCE)

    def take_turn(self, step_s: float) -> None:
        """Does a turn's work; nothing once the lease is kept.

        Args:
            step_s: seconds of a step, which the turn may take too, within bounds.
        """
        until_s = self._clock() + min(max(step_s, _SHORTEST_TURN_S), _LONGEST_TURN_S)
        self._has_more = True
        while self._has_more and self.is_under_way:
            self._has_more = self._pool.let_leave(_LEAVING_AT_ONCE) > 0 or self._gives_up()
            if self._clock() >= until_s:
                return

    def _gives_up(self) -> bool:
        """Gives up a little of what is in the way; False if nothing is, and what is free has to be waited for."""
        num_pages = self._pool.pages_to_empty
        return num_pages > 0 and (self._cache.shrink(_PAGES_AT_ONCE) or self._preempt(num_pages))
