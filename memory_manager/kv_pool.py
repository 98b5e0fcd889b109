"""The KV pool: one range of pages from which all models of a worker draw their blocks.

Pure bookkeeping: it decides which block is whose and which pages are committed, and never looks into
one. Every page is in exactly one of four states::

    null ─ page 0; offset 0 of every model is the null block, where padding points
    held ─ by one KV group of one model, whose blocks alone fill it
    free ─ committed and nobody's: any model may take it in its next call
    bare ─ addresses without memory behind them

Between models a page only changes lists. Only ``set_limit`` and growth towards the limit touch the
mapping.

A group fills its fullest page first, so that its blocks gather in few pages and the others empty: one
live block pins a whole page (the fault of layouts that spread a sequence over many pages).

Threads: the step thread's alone.
"""

from __future__ import annotations

import heapq
import logging
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memory_manager.arena import AddressRange, Arena, contiguous_runs
from memory_manager.kv_spec import PAGE_BYTES, KVGroup
from mooring.errors import InsufficientMemoryError, InternalError
from mooring.units import format_bytes

__all__ = ["KVPool", "KVUsage"]

log = logging.getLogger(__name__)

_NULL_PAGE = 0


class KVUsage(NamedTuple):
    """Bytes of one model: of the pages it holds, and of the blocks that are allocated in them."""

    held_bytes: int
    live_bytes: int


class _GroupBlocks:
    """The blocks of one KV group of one model: which pages it holds, which slots of them are free.

    ``_free_slots[page]`` has a bit for each free slot. ``_pages_with[n]`` are the pages with exactly n
    free slots, n >= 1, and bit n of ``_counts`` says whether there are any: its lowest bit leads to
    the fullest page.
    """

    def __init__(self, group: KVGroup) -> None:
        self.group = group
        self.num_free = 0
        self._blocks_per_page = group.blocks_per_page
        self._granules_per_page = PAGE_BYTES // group.granule_bytes
        self._granules_per_block = group.block_bytes // group.granule_bytes
        self._free_slots: dict[int, int] = {}
        self._pages_with: list[dict[int, None]] = [{} for _ in range(self._blocks_per_page + 1)]
        self._counts = 0

    @property
    def pages(self) -> list[int]:
        return list(self._free_slots)

    @property
    def num_pages(self) -> int:
        return len(self._free_slots)

    @property
    def num_live(self) -> int:
        return self.num_pages * self._blocks_per_page - self.num_free

    def pages_needed(self, num_blocks: int) -> int:
        """New pages without which ``num_blocks`` more do not fit."""
        return -(-max(0, num_blocks - self.num_free) // self._blocks_per_page)

    def add_page(self, page: int) -> None:
        self._free_slots[page] = (1 << self._blocks_per_page) - 1
        self._file(page, self._blocks_per_page)
        self.num_free += self._blocks_per_page

    def take(self, num_blocks: int) -> NDArray[np.int64]:
        """Granule offsets of ``num_blocks`` free blocks, from the fullest pages on."""
        offsets: list[int] = []
        while len(offsets) < num_blocks:
            num_free = (self._counts & -self._counts).bit_length() - 1
            page = next(iter(self._pages_with[num_free]))
            wanted = min(num_free, num_blocks - len(offsets))
            slots = self._take_slots(page, wanted)
            start = page * self._granules_per_page
            offsets.extend(start + slot * self._granules_per_block for slot in slots)
            self._refile(page, num_free, num_free - wanted)
        self.num_free -= num_blocks
        return np.array(offsets, dtype=np.int64)

    def give(self, offsets: NDArray[np.int64]) -> list[int]:
        """Frees blocks; returns the pages that are empty now, which are no longer this group's."""
        pages, within = np.divmod(offsets, self._granules_per_page)
        slots, rest = np.divmod(within, self._granules_per_block)
        if rest.any():
            raise InternalError(f"not offsets of blocks: {offsets[rest != 0]}")
        touched: Counter[int] = Counter()
        for page, slot in zip(pages.tolist(), slots.tolist(), strict=True):
            free = self._free_slots.get(page)
            if free is None or slot >= self._blocks_per_page or free >> slot & 1:
                raise InternalError(f"block {slot} of page {page} is freed and was not allocated")
            self._free_slots[page] = free | 1 << slot
            touched[page] += 1
        self.num_free += len(offsets)
        return [page for page, num_freed in touched.items() if self._gained(page, num_freed)]

    def check(self) -> None:
        """Raises InternalError where the books contradict each other."""
        for page, free in self._free_slots.items():
            if free.bit_count() == self._blocks_per_page:
                raise InternalError(f"page {page} is held and empty")
            if free and page not in self._pages_with[free.bit_count()]:
                raise InternalError(f"page {page} is not filed under its {free.bit_count()} free slots")
        filed = sum(len(pages) for pages in self._pages_with)
        if filed != sum(free != 0 for free in self._free_slots.values()):
            raise InternalError("a page is filed twice, or is filed and not held")
        if self.num_free != sum(free.bit_count() for free in self._free_slots.values()):
            raise InternalError(f"{self.num_free} free slots do not add up")
        for num_free, pages in enumerate(self._pages_with):
            if bool(pages) != bool(self._counts >> num_free & 1):
                raise InternalError(f"the mark of pages with {num_free} free slots is wrong")

    def _gained(self, page: int, num_freed: int) -> bool:
        """Files the page anew after slots of it were freed; True when it is empty and was given up."""
        now_free = self._free_slots[page].bit_count()
        before = now_free - num_freed
        if now_free < self._blocks_per_page:
            self._refile(page, before, now_free)
            return False
        self._refile(page, before, 0)
        del self._free_slots[page]
        self.num_free -= self._blocks_per_page
        return True

    def _take_slots(self, page: int, num_slots: int) -> Sequence[int]:
        """Marks the lowest ``num_slots`` free slots of the page as taken."""
        free = self._free_slots[page]
        if free.bit_count() == self._blocks_per_page:
            self._free_slots[page] = free >> num_slots << num_slots
            return range(num_slots)
        slots = []
        for _ in range(num_slots):
            lowest = free & -free
            slots.append(lowest.bit_length() - 1)
            free ^= lowest
        self._free_slots[page] = free
        return slots

    def _refile(self, page: int, before: int, now: int) -> None:
        if before:
            del self._pages_with[before][page]
            if not self._pages_with[before]:
                self._counts &= ~(1 << before)
        if now:
            self._file(page, now)

    def _file(self, page: int, num_free: int) -> None:
        self._pages_with[num_free][page] = None
        self._counts |= 1 << num_free


class _ModelBlocks(NamedTuple):
    """One model's share of the pool."""

    groups: tuple[_GroupBlocks, ...]
    guarantee_pages: int
    cap_pages: int | None

    @property
    def held_pages(self) -> int:
        return sum(blocks.num_pages for blocks in self.groups)

    @property
    def unmet_pages(self) -> int:
        """Pages of its guarantee that it does not hold yet."""
        return max(0, self.guarantee_pages - self.held_pages)


class KVPool:
    """Blocks for all models of a worker over one address range of the arena.

    The lease starts at the null page alone: nothing can be allocated before the first ``set_limit``.

    Args:
        arena: its page is ``PAGE_BYTES``.
        num_bytes: of addresses, the most that any lease will ever be; rounded up to pages.
    """

    def __init__(self, arena: Arena, num_bytes: int) -> None:
        if arena.page_bytes != PAGE_BYTES:
            raise ValueError(f"the pool's pages are {PAGE_BYTES} bytes, the arena's {arena.page_bytes}")
        self._arena = arena
        self._range = arena.reserve(num_bytes)
        self._num_pages = self._range.num_bytes // PAGE_BYTES
        arena.commit(self._range, _NULL_PAGE, 1)
        self._limit_pages = 1
        self._free: list[int] = []  # the last one freed is taken first
        self._bare = list(range(1, self._num_pages))  # heap
        self._models: dict[str, _ModelBlocks] = {}

    @property
    def address_range(self) -> AddressRange:
        return self._range

    @property
    def committed_bytes(self) -> int:
        """Of pages with memory behind them, the null page included."""
        return self._committed_pages * PAGE_BYTES

    @property
    def limit_bytes(self) -> int:
        """The lease in force, the null page included."""
        return self._limit_pages * PAGE_BYTES

    @property
    def pages_over_limit(self) -> int:
        """Held pages that must empty before the pool is within its lease."""
        return max(0, self._committed_pages - self._limit_pages)

    def add_model(
        self, model_id: str, groups: Sequence[KVGroup], guarantee_bytes: int, cap_bytes: int | None
    ) -> None:
        """Lets a model draw blocks.

        Args:
            groups: every later call names them by their index here.
            guarantee_bytes: pages that no other model can take while this one is here; rounded up.
            cap_bytes: most it may hold, rounded down to pages; None is no cap.
        """
        if model_id in self._models:
            raise InternalError(f"{model_id} is in the pool already")
        for group in groups:
            if group.block_bytes > PAGE_BYTES:
                raise ValueError(
                    f"a block of {format_bytes(group.block_bytes)} exceeds a page: split {group}"
                )
        self._models[model_id] = _ModelBlocks(
            groups=tuple(_GroupBlocks(group) for group in groups),
            guarantee_pages=-(-guarantee_bytes // PAGE_BYTES),
            cap_pages=None if cap_bytes is None else cap_bytes // PAGE_BYTES,
        )

    def remove_model(self, model_id: str) -> None:
        """Ends a model's share, guarantee included. All its blocks must be free."""
        held = self._models[model_id].held_pages
        if held:
            raise InternalError(f"{model_id} leaves the pool and still holds {held} pages")
        del self._models[model_id]

    def can_allocate(self, model_id: str, num_blocks: Sequence[int]) -> bool:
        """Whether there is room for so many blocks of each group, all together."""
        model = self._models[model_id]
        pairs = zip(model.groups, num_blocks, strict=True)
        return sum(blocks.pages_needed(count) for blocks, count in pairs) <= self._obtainable(model_id)

    def allocate(self, model_id: str, group: int, num_blocks: int) -> NDArray[np.int64] | None:
        """Takes blocks of one group, all or nothing.

        Returns:
            Granule offsets int64 ``[num_blocks]``, or None where there is no room now: the limit, the
            model's cap or the others' guarantees forbid it, or the device has less memory than was
            leased (then ``can_allocate`` may have said otherwise). What the blocks hold is arbitrary.
        """
        blocks = self._models[model_id].groups[group]
        num_pages = blocks.pages_needed(num_blocks)
        if num_pages:
            if num_pages > self._obtainable(model_id) or not self._commit(num_pages - len(self._free)):
                return None
            for _ in range(num_pages):
                blocks.add_page(self._free.pop())
        return blocks.take(num_blocks)

    def free(self, model_id: str, group: int, offsets: NDArray[np.int64]) -> None:
        """Gives blocks back. A page that empties is any model's at once; while the pool is over its
        limit it leaves."""
        emptied = self._models[model_id].groups[group].give(offsets)
        if emptied:
            self._free.extend(emptied)
            self._release(self.pages_over_limit)

    def set_limit(self, num_bytes: int) -> bool:
        """Sets the lease, null page included; rounded down to pages, never below the null page.

        Returns:
            True once committed pages are within it. While False, emptied pages leave as they come, and
            ``pages_over_limit`` says how many must still.
        """
        self._limit_pages = min(max(1, num_bytes // PAGE_BYTES), self._num_pages)
        self._release(self.pages_over_limit)
        return self.pages_over_limit == 0

    def usage(self, model_id: str) -> KVUsage:
        model = self._models[model_id]
        live_bytes = sum(blocks.num_live * blocks.group.block_bytes for blocks in model.groups)
        return KVUsage(model.held_pages * PAGE_BYTES, live_bytes)

    def check_integrity(self) -> None:
        """Checks that every page is in exactly one state and every slot is counted once; meant for
        idle moments and tests, as it walks everything.

        Raises:
            InternalError: they do not add up.
        """
        pages = [_NULL_PAGE, *self._free, *self._bare]
        for model in self._models.values():
            for blocks in model.groups:
                blocks.check()
                pages += blocks.pages
        if sorted(pages) != list(range(self._num_pages)):
            raise InternalError("a page of the KV pool is lost, or in two states at once")

    @property
    def _committed_pages(self) -> int:
        return self._num_pages - len(self._bare)

    def _obtainable(self, model_id: str) -> int:
        """Pages that the model may take now: what stays free must cover the others' guarantees."""
        model = self._models[model_id]
        held = sum(other.held_pages for other in self._models.values())
        promised = sum(other.unmet_pages for other in self._models.values()) - model.unmet_pages
        room = self._limit_pages - 1 - held - promised
        if model.cap_pages is not None:
            room = min(room, model.cap_pages - model.held_pages)
        return max(0, room)

    def _commit(self, num_pages: int) -> bool:
        """Turns bare pages into free ones; False when the device has no memory for them."""
        pages = [heapq.heappop(self._bare) for _ in range(num_pages)]
        runs = list(contiguous_runs(pages))
        done = 0
        try:
            for first, length in runs:
                self._arena.commit(self._range, first, length)
                done += length
        except InsufficientMemoryError as error:
            log.warning("the KV pool is within its lease and cannot grow: %s", error.message)
        # Popped from the end by the next allocations, in ascending order.
        self._free.extend(reversed(pages[:done]))
        for page in pages[done:]:
            heapq.heappush(self._bare, page)
        return done == len(pages)

    def _release(self, num_pages: int) -> None:
        """Takes the memory from up to so many free pages, the longest free first."""
        leaving = self._free[:num_pages]
        del self._free[:num_pages]
        for first, length in contiguous_runs(sorted(leaving)):
            self._arena.release(self._range, first, length)
        for page in leaving:
            heapq.heappush(self._bare, page)
