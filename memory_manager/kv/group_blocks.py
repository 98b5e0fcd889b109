"""The blocks of one KV group of one model: which pages it holds, and what each slot of a page is.

A slot is free, in use, or idle: an idle block has nobody who reads or writes it and is kept for what it holds,
until somebody takes it up again or its memory is wanted. A page whose every slot is free or idle can be had
whole by giving up its idle blocks.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from memory_manager.kv_spec import PAGE_BYTES, KVGroup
from mooring.errors import InternalError

__all__ = ["GroupBlocks"]

_MOST_EXAMINED = 1024  # pages, in half a millisecond


class GroupBlocks:
    """The blocks of one KV group of one model: which pages it holds, which slots of them are free.

    ``_free_slots[page]`` has a bit for each free slot. ``_pages_with[n]`` are the pages with exactly n
    free slots, n >= 1, and bit n of ``_counts`` says whether there are any: its lowest bit leads to
    the fullest page. ``_idle_slots[page]`` has a bit for each idle slot, of pages that have any.

    Args:
        clock: counts on with each reading; shared by all groups whose idle pages are compared.
    """

    def __init__(self, group: KVGroup, clock: Iterator[int]) -> None:
        self.group = group
        self.num_free = 0
        self.num_idle = 0
        self._clock = clock
        self._idle_slots: dict[int, int] = {}
        self._idle_pages: dict[int, int] = {}
        self._all_slots = (1 << group.blocks_per_page) - 1
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
    def idle_pages(self) -> Mapping[int, int]:
        """Pages with idle blocks and none in use, the longest so first, and since when by the clock."""
        return MappingProxyType(self._idle_pages)

    @property
    def num_live(self) -> int:
        """Blocks in use."""
        return self.num_pages * self._blocks_per_page - self.num_free - self.num_idle

    @property
    def num_pages_in_use(self) -> int:
        """Pages that hold any."""
        return self.num_pages - len(self._idle_pages)

    @property
    def fewest_pages(self) -> int:
        """Pages that its blocks in use would fill."""
        return self._pages_for(self.num_live)

    def pages_needed(self, num_blocks: int) -> int:
        """New pages without which ``num_blocks`` more do not fit."""
        return self._pages_for(num_blocks - self.num_free)

    def pages_needed_without_idle(self, num_blocks: int) -> int:
        """The same, if every idle block were given up, and with them the idle pages."""
        slots_in_idle_pages = len(self._idle_pages) * self._blocks_per_page
        return self._pages_for(num_blocks - (self.num_free + self.num_idle - slots_in_idle_pages))

    def _pages_for(self, num_blocks: int) -> int:
        return -(-max(0, num_blocks) // self._blocks_per_page)

    def add_page(self, page: int) -> None:
        self._free_slots[page] = self._all_slots
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
            self._idle_pages.pop(page, None)
            start = page * self._granules_per_page
            offsets.extend(start + slot * self._granules_per_block for slot in slots)
            self._refile(page, num_free, num_free - wanted)
        self.num_free -= num_blocks
        return np.array(offsets, dtype=np.int64)

    def give(self, offsets: NDArray[np.int64]) -> list[int]:
        """Frees blocks in use; returns the pages that are empty now, which are no longer this group's."""
        touched: Counter[int] = Counter()
        for page, slot in self._places(offsets):
            free = self._free_slots.get(page)
            if free is None or self._is_not_in_use(page, slot):
                raise InternalError(f"block {slot} of page {page} is freed and was not allocated")
            self._free_slots[page] = free | 1 << slot
            touched[page] += 1
        self.num_free += len(offsets)
        return [page for page, num_freed in touched.items() if self._gained(page, num_freed)]

    def set_idle(self, offsets: NDArray[np.int64]) -> None:
        """Nobody uses these blocks any more; they are kept for what they hold."""
        for page, slot in self._places(offsets):
            if self._is_not_in_use(page, slot):
                raise InternalError(f"block {slot} of page {page} becomes idle and was not in use")
            self._idle_slots[page] = self._idle_slots.get(page, 0) | 1 << slot
            self._note_if_idle(page)
        self.num_idle += len(offsets)

    def set_in_use(self, offsets: NDArray[np.int64]) -> None:
        """Takes idle blocks up again."""
        for page, slot in self._places(offsets):
            idle = self._idle_slots.get(page, 0)
            if not idle >> slot & 1:
                raise InternalError(f"block {slot} of page {page} is taken up and was not idle")
            self._set_idle_slots(page, idle & ~(1 << slot))
            self._idle_pages.pop(page, None)
        self.num_idle -= len(offsets)

    def idle_offsets(self, pages: Iterable[int]) -> NDArray[np.int64]:
        """Granule offsets of the idle blocks of these pages."""
        return self._offsets((page, self._idle_slots.get(page, 0)) for page in pages)

    # Moving ----------------------------------------------------------------------------------------

    def sparsest_pages(self, num_pages: int) -> list[tuple[int, int]]:
        """Up to so many pages whose blocks in use would all fit into its other pages that have any, as a pair with
        how many each has: the sparsest first, of as many as can be looked at without holding up a step."""
        num_pages = min(num_pages, self.num_pages_in_use - self.fewest_pages)
        if num_pages <= 0:
            return []
        examined = islice(
            (page for page in self._free_slots if page not in self._idle_pages),
            max(num_pages, _MOST_EXAMINED),
        )
        return heapq.nsmallest(num_pages, ((self._num_live_in(page), page) for page in examined))

    def in_the_way(self, pages: Sequence[int]) -> tuple[NDArray[np.int64], set[int], int]:
        """What has to be given up before the blocks in use of these pages can move to the others that have any.

        Returns:
            Granule offsets int64 [n] of idle blocks of these pages; those of the other pages; and how many of
            the latter must go for want of free slots.
        """
        beside = self._idle_slots.keys() - set(pages) - self._idle_pages.keys()
        num_live = sum(self._num_live_in(page) for page in pages)
        num_free = self.num_free - sum(
            self._free_slots[page].bit_count() for page in chain(pages, self._idle_pages)
        )
        return (
            self.idle_offsets(pages),
            set(self.idle_offsets(beside).tolist()),
            max(0, num_live - num_free),
        )

    def take_elsewhere(self, pages: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The blocks in use of these pages, which have no idle ones, and as many new ones of other pages with any;
        both granule offsets int64 [n]."""
        # Idle pages are hidden too: whoever makes room counts them as given up.
        free = {page: self._free_slots[page].bit_count() for page in chain(pages, self._idle_pages)}
        for page, num_free in free.items():
            self._refile(page, num_free, 0)
        sources = self._offsets((page, self._all_slots & ~self._free_slots[page]) for page in pages)
        destinations = self.take(len(sources))
        for page, num_free in free.items():
            self._refile(page, 0, num_free)
        return sources, destinations

    def _num_live_in(self, page: int) -> int:
        return self._blocks_per_page - (self._free_slots[page] | self._idle_slots.get(page, 0)).bit_count()

    # Places ----------------------------------------------------------------------------------------

    def _places(self, offsets: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
        """Page and slot of each block."""
        pages, within = np.divmod(offsets, self._granules_per_page)
        slots, rest = np.divmod(within, self._granules_per_block)
        if rest.any() or (slots >= self._blocks_per_page).any():
            raise InternalError(f"not offsets of blocks: {offsets}")
        return zip(pages.tolist(), slots.tolist(), strict=True)

    def _offsets(self, slots: Iterable[tuple[int, int]]) -> NDArray[np.int64]:
        """Granule offsets int64 [n] of the slots whose bits are set, page by page."""
        return np.array(
            [
                page * self._granules_per_page + slot * self._granules_per_block
                for page, mask in slots
                for slot in _bits(mask)
            ],
            np.int64,
        )

    def _is_not_in_use(self, page: int, slot: int) -> bool:
        not_held = self._all_slots
        return bool((self._free_slots.get(page, not_held) | self._idle_slots.get(page, 0)) >> slot & 1)

    def _set_idle_slots(self, page: int, idle: int) -> None:
        if idle:
            self._idle_slots[page] = idle
        else:
            del self._idle_slots[page]

    def _note_if_idle(self, page: int) -> None:
        idle = self._idle_slots.get(page, 0)
        if idle and self._free_slots[page] | idle == self._all_slots and page not in self._idle_pages:
            self._idle_pages[page] = next(self._clock)

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
        self._check_idle()
        if self.num_free != sum(free.bit_count() for free in self._free_slots.values()):
            raise InternalError(f"{self.num_free} free slots do not add up")
        for num_free, pages in enumerate(self._pages_with):
            if bool(pages) != bool(self._counts >> num_free & 1):
                raise InternalError(f"the mark of pages with {num_free} free slots is wrong")

    def _check_idle(self) -> None:
        if self.num_idle != sum(idle.bit_count() for idle in self._idle_slots.values()):
            raise InternalError(f"{self.num_idle} idle slots do not add up")
        for page, idle in self._idle_slots.items():
            if not idle or self._free_slots[page] & idle:
                raise InternalError(f"page {page} has idle slots that are free, or none")
        whole = {
            page
            for page, idle in self._idle_slots.items()
            if self._free_slots[page] | idle == self._all_slots
        }
        if whole != self._idle_pages.keys():
            raise InternalError(f"pages {sorted(whole)} are idle, {sorted(self._idle_pages)} are known to be")

    def _gained(self, page: int, num_freed: int) -> bool:
        """Files the page anew after slots of it were freed; True when it is empty and was given up."""
        now_free = self._free_slots[page].bit_count()
        before = now_free - num_freed
        if now_free < self._blocks_per_page:
            self._refile(page, before, now_free)
            self._note_if_idle(page)
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
        slots = list(islice(_bits(free), num_slots))
        self._free_slots[page] = free & ~sum(1 << slot for slot in slots)
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


def _bits(mask: int) -> Iterator[int]:
    """Positions of the set bits, ascending."""
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest
