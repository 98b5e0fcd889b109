"""The blocks of one KV group of one model: the pages that the group holds, and the state of each place in
them.

A page has places for ``blocks_per_page`` blocks. A place is vacant, or its block is in use, or its block is
idle: nobody reads or writes an idle block, and its contents are kept until somebody uses the block again or
its memory is wanted. A page whose places are all vacant or idle becomes free as a whole if its idle blocks
are given up.
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
    """The blocks of one KV group of one model: the pages that the group holds, and which of their places are
    vacant.

    ``_vacant_places[page]`` has a bit for each vacant place of a page. ``_pages_with[n]`` are the pages with
    exactly n vacant places, n >= 1; bit n of ``_counts`` is set if there are such pages, so that its lowest
    set bit leads to the fullest page. ``_idle_places[page]`` has a bit for each idle block, of pages that
    have any.

    Args:
        clock: gives a higher number at each reading; shared by all groups whose idle pages are compared.
    """

    def __init__(self, group: KVGroup, clock: Iterator[int]) -> None:
        self.group = group
        self.num_vacant = 0
        self.num_idle = 0
        self._clock = clock
        self._idle_places: dict[int, int] = {}
        self._idle_pages: dict[int, int] = {}
        self._all_places = (1 << group.blocks_per_page) - 1
        self._blocks_per_page = group.blocks_per_page
        self._granules_per_page = PAGE_BYTES // group.granule_bytes
        self._granules_per_block = group.block_bytes // group.granule_bytes
        self._vacant_places: dict[int, int] = {}
        self._pages_with: list[dict[int, None]] = [{} for _ in range(self._blocks_per_page + 1)]
        self._counts = 0

    @property
    def pages(self) -> list[int]:
        return list(self._vacant_places)

    @property
    def num_pages(self) -> int:
        return len(self._vacant_places)

    @property
    def idle_pages(self) -> Mapping[int, int]:
        """Pages that have idle blocks and no block in use, each with the clock's reading when it became so;
        the longest idle first."""
        return MappingProxyType(self._idle_pages)

    @property
    def num_live(self) -> int:
        """Blocks in use."""
        return self.num_pages * self._blocks_per_page - self.num_vacant - self.num_idle

    @property
    def num_pages_in_use(self) -> int:
        """Pages that hold at least one block in use."""
        return self.num_pages - len(self._idle_pages)

    @property
    def fewest_pages(self) -> int:
        """Pages that the group's blocks in use would need if they lay as close together as they can."""
        return self._pages_for(self.num_live)

    def pages_needed(self, num_blocks: int) -> int:
        """Number of pages that the group has to add before ``num_blocks`` more blocks fit."""
        return self._pages_for(num_blocks - self.num_vacant)

    def pages_needed_without_idle(self, num_blocks: int) -> int:
        """``pages_needed`` as it would be if every idle block, and with them every idle page, were given
        up."""
        places_in_idle_pages = len(self._idle_pages) * self._blocks_per_page
        return self._pages_for(num_blocks - (self.num_vacant + self.num_idle - places_in_idle_pages))

    def _pages_for(self, num_blocks: int) -> int:
        return -(-max(0, num_blocks) // self._blocks_per_page)

    def add_page(self, page: int) -> None:
        self._vacant_places[page] = self._all_places
        self._file(page, self._blocks_per_page)
        self.num_vacant += self._blocks_per_page

    def take(self, num_blocks: int) -> NDArray[np.int64]:
        """Puts ``num_blocks`` blocks into vacant places, of the fullest pages first; returns their granule
        offsets, int64 ``[num_blocks]``."""
        offsets: list[int] = []
        while len(offsets) < num_blocks:
            num_vacant = (self._counts & -self._counts).bit_length() - 1
            page = next(iter(self._pages_with[num_vacant]))
            wanted = min(num_vacant, num_blocks - len(offsets))
            places = self._take_places(page, wanted)
            self._idle_pages.pop(page, None)
            start = page * self._granules_per_page
            offsets.extend(start + place * self._granules_per_block for place in places)
            self._refile(page, num_vacant, num_vacant - wanted)
        self.num_vacant -= num_blocks
        return np.array(offsets, dtype=np.int64)

    def give(self, offsets: NDArray[np.int64]) -> list[int]:
        """Frees blocks in use; returns the pages that are empty now and so no longer belong to this group."""
        touched: Counter[int] = Counter()
        for page, place in self._pages_and_places(offsets):
            vacant = self._vacant_places.get(page)
            if vacant is None or self._is_not_in_use(page, place):
                raise InternalError(f"block {place} of page {page} is freed and was not allocated")
            self._vacant_places[page] = vacant | 1 << place
            touched[page] += 1
        self.num_vacant += len(offsets)
        return [page for page, num_freed in touched.items() if self._gained(page, num_freed)]

    def set_idle(self, offsets: NDArray[np.int64]) -> None:
        """Marks blocks in use as idle: nobody uses them any more, and their contents are kept."""
        for page, place in self._pages_and_places(offsets):
            if self._is_not_in_use(page, place):
                raise InternalError(f"block {place} of page {page} becomes idle and was not in use")
            self._idle_places[page] = self._idle_places.get(page, 0) | 1 << place
            self._note_if_idle(page)
        self.num_idle += len(offsets)

    def set_in_use(self, offsets: NDArray[np.int64]) -> None:
        """Marks idle blocks as in use again."""
        for page, place in self._pages_and_places(offsets):
            idle = self._idle_places.get(page, 0)
            if not idle >> place & 1:
                raise InternalError(f"block {place} of page {page} is taken up and was not idle")
            self._set_idle_places(page, idle & ~(1 << place))
            self._idle_pages.pop(page, None)
        self.num_idle -= len(offsets)

    def idle_offsets(self, pages: Iterable[int]) -> NDArray[np.int64]:
        """Granule offsets of the idle blocks of these pages."""
        return self._offsets((page, self._idle_places.get(page, 0)) for page in pages)

    # Moving ----------------------------------------------------------------------------------------

    def sparsest_pages(self, num_pages: int) -> list[tuple[int, int]]:
        """Finds up to ``num_pages`` pages whose blocks in use would all fit into the group's other pages that
        have blocks in use. Only as many pages are examined as takes no time that a step would notice.

        Returns:
            Pairs of a page's number of blocks in use and the page, the fewest blocks first.
        """
        num_pages = min(num_pages, self.num_pages_in_use - self.fewest_pages)
        if num_pages <= 0:
            return []
        examined = islice(
            (page for page in self._vacant_places if page not in self._idle_pages),
            max(num_pages, _MOST_EXAMINED),
        )
        return heapq.nsmallest(num_pages, ((self._num_live_in(page), page) for page in examined))

    def in_the_way(self, pages: Sequence[int]) -> tuple[NDArray[np.int64], set[int], int]:
        """Idle blocks that have to be given up before the blocks in use of these pages can move to the
        group's other pages that have blocks in use.

        Returns:
            Granule offsets int64 [n] of the idle blocks of these pages, all of which must go; granule offsets
            of the idle blocks of those other pages; and how many of the latter must go for want of vacant
            places.
        """
        beside = self._idle_places.keys() - set(pages) - self._idle_pages.keys()
        num_live = sum(self._num_live_in(page) for page in pages)
        num_vacant = self.num_vacant - sum(
            self._vacant_places[page].bit_count() for page in chain(pages, self._idle_pages)
        )
        return (
            self.idle_offsets(pages),
            set(self.idle_offsets(beside).tolist()),
            max(0, num_live - num_vacant),
        )

    def take_elsewhere(self, pages: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Takes a new block, in another page that has blocks in use, for each block in use of these pages.
        These pages have no idle blocks.

        Returns:
            Granule offsets of the old blocks and of the new ones, int64 [n] each.
        """
        # Idle pages are hidden too: whoever makes room counts them as given up.
        vacant = {page: self._vacant_places[page].bit_count() for page in chain(pages, self._idle_pages)}
        for page, num_vacant in vacant.items():
            self._refile(page, num_vacant, 0)
        sources = self._offsets((page, self._all_places & ~self._vacant_places[page]) for page in pages)
        destinations = self.take(len(sources))
        for page, num_vacant in vacant.items():
            self._refile(page, 0, num_vacant)
        return sources, destinations

    def _num_live_in(self, page: int) -> int:
        return (
            self._blocks_per_page - (self._vacant_places[page] | self._idle_places.get(page, 0)).bit_count()
        )

    # Places ----------------------------------------------------------------------------------------

    def _pages_and_places(self, offsets: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
        """The page of each block and its place there."""
        pages, within = np.divmod(offsets, self._granules_per_page)
        places, rest = np.divmod(within, self._granules_per_block)
        if rest.any() or (places >= self._blocks_per_page).any():
            raise InternalError(f"not offsets of blocks: {offsets}")
        return zip(pages.tolist(), places.tolist(), strict=True)

    def _offsets(self, places: Iterable[tuple[int, int]]) -> NDArray[np.int64]:
        """Granule offsets int64 [n] of the places whose bits are set, page by page."""
        return np.array(
            [
                page * self._granules_per_page + place * self._granules_per_block
                for page, mask in places
                for place in _bits(mask)
            ],
            np.int64,
        )

    def _is_not_in_use(self, page: int, place: int) -> bool:
        not_held = self._all_places
        return bool((self._vacant_places.get(page, not_held) | self._idle_places.get(page, 0)) >> place & 1)

    def _set_idle_places(self, page: int, idle: int) -> None:
        if idle:
            self._idle_places[page] = idle
        else:
            del self._idle_places[page]

    def _note_if_idle(self, page: int) -> None:
        idle = self._idle_places.get(page, 0)
        if idle and self._vacant_places[page] | idle == self._all_places and page not in self._idle_pages:
            self._idle_pages[page] = next(self._clock)

    def check(self) -> None:
        """Checks the books of the group.

        Raises:
            InternalError: they contradict each other.
        """
        for page, vacant in self._vacant_places.items():
            if vacant.bit_count() == self._blocks_per_page:
                raise InternalError(f"page {page} is held and empty")
            if vacant and page not in self._pages_with[vacant.bit_count()]:
                raise InternalError(f"page {page} is not filed under its {vacant.bit_count()} vacant places")
        filed = sum(len(pages) for pages in self._pages_with)
        if filed != sum(vacant != 0 for vacant in self._vacant_places.values()):
            raise InternalError("a page is filed twice, or is filed and not held")
        self._check_idle()
        if self.num_vacant != sum(vacant.bit_count() for vacant in self._vacant_places.values()):
            raise InternalError(f"{self.num_vacant} vacant places do not add up")
        for num_vacant, pages in enumerate(self._pages_with):
            if bool(pages) != bool(self._counts >> num_vacant & 1):
                raise InternalError(f"the mark of pages with {num_vacant} vacant places is wrong")

    def _check_idle(self) -> None:
        if self.num_idle != sum(idle.bit_count() for idle in self._idle_places.values()):
            raise InternalError(f"{self.num_idle} idle places do not add up")
        for page, idle in self._idle_places.items():
            if not idle or self._vacant_places[page] & idle:
                raise InternalError(f"page {page} has idle places that are vacant, or none")
        whole = {
            page
            for page, idle in self._idle_places.items()
            if self._vacant_places[page] | idle == self._all_places
        }
        if whole != self._idle_pages.keys():
            raise InternalError(f"pages {sorted(whole)} are idle, {sorted(self._idle_pages)} are known to be")

    def _gained(self, page: int, num_freed: int) -> bool:
        """Files a page anew after some of its places became vacant; True if it is empty now and was given
        up."""
        now_vacant = self._vacant_places[page].bit_count()
        before = now_vacant - num_freed
        if now_vacant < self._blocks_per_page:
            self._refile(page, before, now_vacant)
            self._note_if_idle(page)
            return False
        self._refile(page, before, 0)
        del self._vacant_places[page]
        self.num_vacant -= self._blocks_per_page
        return True

    def _take_places(self, page: int, num_places: int) -> Sequence[int]:
        """Marks the lowest ``num_places`` vacant places of the page as taken; returns them."""
        vacant = self._vacant_places[page]
        if vacant.bit_count() == self._blocks_per_page:
            self._vacant_places[page] = vacant >> num_places << num_places
            return range(num_places)
        places = list(islice(_bits(vacant), num_places))
        self._vacant_places[page] = vacant & ~sum(1 << place for place in places)
        return places

    def _refile(self, page: int, before: int, now: int) -> None:
        if before:
            del self._pages_with[before][page]
            if not self._pages_with[before]:
                self._counts &= ~(1 << before)
        if now:
            self._file(page, now)

    def _file(self, page: int, num_vacant: int) -> None:
        self._pages_with[num_vacant][page] = None
        self._counts |= 1 << num_vacant


def _bits(mask: int) -> Iterator[int]:
    """Positions of the set bits, ascending."""
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest
