"""The pages of a KV pool: which have memory behind them, and which are on their way out.

A page that must leave because the lease shrank is in quarantine first, until no step that was launched before can
touch it any more. It counts as committed meanwhile, and comes back if the lease grows again.
"""

from __future__ import annotations

import heapq
import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

from memory_manager.arena.protocol import AddressRange, Arena, contiguous_runs
from memory_manager.kv_spec import PAGE_BYTES
from mooring.errors import InsufficientMemoryError, InternalError

__all__ = ["PoolPages", "StepFence"]

log = logging.getLogger(__name__)

_NULL_PAGE = 0


class StepFence(Protocol):
    """Says when what was launched on the device has ended."""

    def mark(self) -> Callable[[], bool]:
        """Marks this moment; the answer tells, whenever asked, whether all that was launched before has ended."""
        ...


class _NoSteps:
    """A ``StepFence`` where nothing runs beside its caller."""

    def mark(self) -> Callable[[], bool]:
        return lambda: True


class PoolPages:
    """The pages of one address range of the arena, page 0 being the null page.

    Args:
        arena: an arena with pages of ``PAGE_BYTES``.
        num_bytes: size of the range, rounded up to pages.

    Attributes:
        fence: behind which pages leave; at first nothing runs beside the calls.
        limit: pages that may be committed, the null page included.
        free: committed pages that are nobody's; the last one freed is taken first.
    """

    def __init__(self, arena: Arena, num_bytes: int) -> None:
        if arena.page_bytes != PAGE_BYTES:
            raise ValueError(f"the pool's pages are {PAGE_BYTES} bytes, the arena's {arena.page_bytes}")
        self.address_range: AddressRange = arena.reserve(num_bytes)
        self.fence: StepFence = _NoSteps()
        self.limit = 1
        self.free: list[int] = []
        self._arena = arena
        self._num_pages = self.address_range.num_bytes // PAGE_BYTES
        self._is_open = False
        self._bare = list(range(1, self._num_pages))  # heap
        self._leaving: deque[tuple[int, Callable[[], bool]]] = deque()  # the first to come goes first
        self._is_short = False  # the last growth failed

    @property
    def num_committed(self) -> int:
        """Pages that have memory behind them: the null page of an open pool, and those in quarantine, included."""
        return self._num_pages - len(self._bare) - (not self._is_open)

    @property
    def num_leaving(self) -> int:
        """Pages in quarantine."""
        return len(self._leaving)

    @property
    def num_over_limit(self) -> int:
        """Committed pages beyond the limit."""
        return max(0, self.num_committed - self.limit)

    @property
    def num_to_empty(self) -> int:
        """Pages beyond the limit that are not even on their way out: as many must come free."""
        return max(0, self.num_committed - self.num_leaving - self.limit)

    def open(self) -> bool:
        """Commits the null page; False if that was done before.

        Raises:
            InsufficientMemoryError: the arena may not hold it, or the system has no memory for it.
        """
        if self._is_open:
            return False
        self._arena.commit(self.address_range, _NULL_PAGE, 1)
        self._is_open = True
        return True

    def set_limit(self, num_pages: int) -> None:
        """Sets the limit, never below the null page. Free pages beyond it go into quarantine; of those in quarantine
        as many as it has room for are free again."""
        self.limit = min(max(1, num_pages), self._num_pages)
        while self._leaving and self.num_committed - self.num_leaving < self.limit:
            self.free.append(self._leaving.pop()[0])
        self._send_away()

    def give(self, pages: Iterable[int]) -> None:
        """Takes pages that are nobody's any more. As many as are beyond the limit go into quarantine."""
        self.free.extend(pages)
        self._send_away()

    def have_free(self, num_pages: int) -> bool:
        """Commits pages until so many are free; False if the device has no memory for all of them."""
        return self._commit(num_pages - len(self.free))

    def let_leave(self, most_pages: int) -> int:
        """Takes the memory from pages whose quarantine is over, up to so many; returns how many left."""
        leaving: list[int] = []
        while self._leaving and len(leaving) < most_pages and self._leaving[0][1]():
            leaving.append(self._leaving.popleft()[0])
        for first, length in contiguous_runs(sorted(leaving)):
            self._arena.release(self.address_range, first, length)
        for page in leaving:
            heapq.heappush(self._bare, page)
        return len(leaving)

    def check_integrity(self, held: Iterable[int]) -> None:
        """Checks that every page is in exactly one state.

        Args:
            held: pages that models hold.

        Raises:
            InternalError: the books do not add up.
        """
        pages = [_NULL_PAGE, *self.free, *self._bare, *(page for page, _ in self._leaving), *held]
        if sorted(pages) != list(range(self._num_pages)):
            raise InternalError("a page of the KV pool is lost, or in two states at once")

    def _send_away(self) -> None:
        leaving = self.free[: self.num_to_empty]  # the longest free
        if leaving:
            has_passed = self.fence.mark()
            del self.free[: len(leaving)]
            self._leaving.extend((page, has_passed) for page in leaving)

    def _commit(self, num_pages: int) -> bool:
        """Turns bare pages into free ones; False if the device has no memory for all of them."""
        pages = [heapq.heappop(self._bare) for _ in range(num_pages)]
        runs = list(contiguous_runs(pages))
        done = 0
        try:
            for first, length in runs:
                self._arena.commit(self.address_range, first, length)
                done += length
        except InsufficientMemoryError as error:
            if not self._is_short:  # a step asks again and again: warn once
                log.warning("the KV pool is within its lease and cannot grow: %s", error.message)
        if pages:
            self._is_short = done < len(pages)
        # Popped from the end by the next allocations, in ascending order.
        self.free.extend(reversed(pages[:done]))
        for page in pages[done:]:
            heapq.heappush(self._bare, page)
        return done == len(pages)
