"""The KV pool: one range of pages from which all models of a worker draw their blocks.

Pure bookkeeping: the pool decides which block is whose and which pages are committed, and never looks into a
block. Every page is in exactly one of five states::

    null ─ page 0; offset 0 of every model is the null block, where padding points
    held ─ by one KV group of one model, whose blocks alone fill it
    free ─ committed and nobody's: any model may take it in its next call
    leaving ─ committed and nobody's, beyond the lease: in quarantine (``memory_manager.kv.pages``)
    bare ─ addresses without memory behind them

Between models a page only changes lists. Only ``let_leave`` and growth towards the limit touch the mapping.

A place for a block in a held page is vacant, in use or idle (``memory_manager.kv.group_blocks``). A group
fills its fullest page first, so that its blocks gather in few pages and the others empty: a single block in
use pins a whole page (the fault of layouts that spread a sequence over many pages). If that is not enough, a
group's blocks are moved from its sparsest pages into the vacant places of its other pages.

Blocks that nobody uses may be kept for what they hold (``memory_manager.kv.block_store``): they are idle, and
their pages count as held until the blocks are given up.

A model whose weights are off the device is parked: it keeps its blocks and takes none, and nothing is guaranteed to
it. Whoever needs its pages may have them all, once its sequences have let go of them.

Threads: the pool belongs to the step thread alone.
"""

from __future__ import annotations

import enum
import heapq
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memory_manager.arena.protocol import AddressRange, Arena
from memory_manager.kv.group_blocks import GroupBlocks
from memory_manager.kv.pages import PoolPages, StepFence
from memory_manager.kv_spec import PAGE_BYTES, KVGroup
from memory_manager.stats import KVFragmentation
from mooring.errors import InternalError
from mooring.units import format_bytes

__all__ = ["KVPool", "KVShare", "KVUsage"]


class KVUsage(NamedTuple):
    """KV bytes of one model.

    Attributes:
        held_bytes: pages that the model holds, whole.
        live_bytes: blocks in use in these pages.
        idle_bytes: idle blocks in these pages.
    """

    held_bytes: int
    live_bytes: int
    idle_bytes: int


class KVShare(NamedTuple):
    """Bounds of one model's KV, in bytes of whole pages.

    Attributes:
        guarantee_bytes: none of these go to another.
        cap_bytes: the most that it may hold; None means no cap.
    """

    guarantee_bytes: int
    cap_bytes: int | None


class _ModelBlocks(NamedTuple):
    """One model's share of the pool."""

    groups: tuple[GroupBlocks, ...]
    guarantee_pages: int
    cap_pages: int | None
    is_parked: bool = False

    @property
    def guaranteed_pages(self) -> int:
        """Pages that no other model can take now."""
        return 0 if self.is_parked else self.guarantee_pages

    @property
    def held_pages(self) -> int:
        return sum(blocks.num_pages for blocks in self.groups)

    @property
    def num_idle_pages(self) -> int:
        return self.held_pages - self.pages_in_use

    @property
    def pages_in_use(self) -> int:
        return sum(blocks.num_pages_in_use for blocks in self.groups)

    @property
    def fewest_pages(self) -> int:
        return sum(blocks.fewest_pages for blocks in self.groups)


class _Keeps(enum.Enum):
    """Which of its pages a model is counted with when room is sought: all, those with a block in use, as few as its
    blocks in use would fill, or so many only if it is not parked, and else none."""

    ALL_PAGES = enum.auto()
    PAGES_IN_USE = enum.auto()
    FEWEST_PAGES = enum.auto()
    NONE_IF_PARKED = enum.auto()


class KVPool:
    """Blocks for all models of a worker over one address range of the arena.

    The pool is closed at first and holds no memory; with the first lease it is opened. Nothing can be allocated
    before the first ``set_limit``.

    Args:
        arena: an arena with pages of ``PAGE_BYTES``.
        num_bytes: size of the address range, the most that any lease will ever be; rounded up to pages.
    """

    def __init__(self, arena: Arena, num_bytes: int) -> None:
        self._pages = PoolPages(arena, num_bytes)
        self._models: dict[str, _ModelBlocks] = {}
        self._clock = itertools.count()

    @property
    def address_range(self) -> AddressRange:
        return self._pages.address_range

    @property
    def committed_bytes(self) -> int:
        """Bytes of the pages that have memory behind them, the null page of an open pool included."""
        return self._pages.num_committed * PAGE_BYTES

    @property
    def limit_bytes(self) -> int:
        """The lease in force, the null page included."""
        return self._pages.limit * PAGE_BYTES

    @property
    def pages_over_limit(self) -> int:
        """Committed pages beyond the lease: as many must still leave."""
        return self._pages.num_over_limit

    @property
    def pages_to_empty(self) -> int:
        """Pages of ``pages_over_limit`` that have not come free yet."""
        return self._pages.num_to_empty

    def leave_behind(self, fence: StepFence) -> None:
        """Sets the fence behind which pages leave; without one nothing runs beside the pool's calls."""
        self._pages.fence = fence

    def open(self) -> bool:
        """Commits the null page, whose contents are arbitrary; False if the pool was open already.

        Raises:
            InsufficientMemoryError: the arena may not hold it, or the system has no memory for it.
        """
        return self._pages.open()

    def add_model(
        self, replica_id: str, groups: Sequence[KVGroup], guarantee_bytes: int, cap_bytes: int | None
    ) -> None:
        """Lets a model draw blocks.

        Args:
            groups: KV groups of the model; every later call names a group by its index here.
            guarantee_bytes: bytes of pages that no other model can take while this model is in the pool;
                rounded up to pages.
            cap_bytes: most that the model may hold, rounded down to pages; None means no cap.
        """
        if replica_id in self._models:
            raise InternalError(f"{replica_id} is in the pool already")
        for group in groups:
            if group.block_bytes > PAGE_BYTES:
                raise ValueError(
                    f"a block of {format_bytes(group.block_bytes)} exceeds a page: split {group}"
                )
        self._models[replica_id] = _ModelBlocks(
            groups=tuple(GroupBlocks(group, self._clock) for group in groups),
            guarantee_pages=-(-guarantee_bytes // PAGE_BYTES),
            cap_pages=None if cap_bytes is None else cap_bytes // PAGE_BYTES,
        )

    def remove_model(self, replica_id: str) -> None:
        """Ends a model's share, guarantee included. All its blocks must have been freed."""
        held = self._models[replica_id].held_pages
        if held:
            raise InternalError(f"{replica_id} leaves the pool and still holds {held} pages")
        del self._models[replica_id]

    def drop_model(self, replica_id: str) -> None:
        """Ends a model's share, whatever blocks it has: its pages are free."""
        for blocks in self._models.pop(replica_id).groups:
            self._pages.give(blocks.pages)

    def park(self, replica_id: str) -> None:
        """A model takes no more blocks until ``unpark``, keeps those that it has, and has no guarantee."""
        self._models[replica_id] = self._models[replica_id]._replace(is_parked=True)

    def unpark(self, replica_id: str) -> None:
        """Lets a parked model draw blocks again, and gives it its guarantee back. What it holds may then be in the
        way of the others' guarantees: see ``crowds_others``."""
        self._models[replica_id] = self._models[replica_id]._replace(is_parked=False)

    def exceeds_guarantee(self, replica_id: str) -> bool:
        """Whether the model's blocks in use, in as few pages as hold them, take more pages than are guaranteed to it:
        then others could have some of them."""
        model = self._models[replica_id]
        return model.fewest_pages > model.guaranteed_pages

    def most_bytes(self, replica_id: str) -> int:
        """The most that the model may hold under this lease, if the others keep no more than is guaranteed to
        them."""
        promised = sum(each.guaranteed_pages for name, each in self._models.items() if name != replica_id)
        most_pages, cap_pages = self._pages.limit - 1 - promised, self._models[replica_id].cap_pages
        return PAGE_BYTES * max(0, most_pages if cap_pages is None else min(most_pages, cap_pages))

    def crowds_others(self, replica_id: str) -> bool:
        """Whether the model, all idle blocks given up, uses pages that are wanted for the others' guarantees. None
        does that has taken its blocks since it was added or unparked."""
        return self._room(replica_id, _Keeps.NONE_IF_PARKED) < 0

    def pages_short(self, replica_id: str, num_blocks: Sequence[int]) -> int:
        """Number of pages that have to come free before ``num_blocks[g]`` more blocks of every group g fit,
        all together, while every idle block stays; 0 or less if there is room."""
        pairs = zip(self._models[replica_id].groups, num_blocks, strict=True)
        needed = sum(blocks.pages_needed(count) for blocks, count in pairs)
        return needed - self._room(replica_id) if needed else 0

    def pages_short_without_idle(self, replica_id: str, num_blocks: Sequence[int]) -> int:
        """``pages_short`` as it would be if every idle block of every model were given up."""
        return self._pages_short_if(replica_id, num_blocks, _Keeps.PAGES_IN_USE)

    def pages_short_without_gaps(self, replica_id: str, num_blocks: Sequence[int]) -> int:
        """``pages_short_without_idle`` as it would be if moreover the other models' blocks were moved into as
        few pages as hold them."""
        return self._pages_short_if(replica_id, num_blocks, _Keeps.FEWEST_PAGES)

    def pages_short_without_parked(self, replica_id: str, num_blocks: Sequence[int]) -> int:
        """``pages_short_without_gaps`` as it would be if moreover parked models held no block."""
        return self._pages_short_if(replica_id, num_blocks, _Keeps.NONE_IF_PARKED)

    def _pages_short_if(self, replica_id: str, num_blocks: Sequence[int], keeps: _Keeps) -> int:
        pairs = zip(self._models[replica_id].groups, num_blocks, strict=True)
        needed = sum(blocks.pages_needed_without_idle(count) for blocks, count in pairs)
        return needed - self._room(replica_id, keeps) if needed else 0

    def pages_over_cap(self, replica_id: str, num_blocks: Sequence[int]) -> int:
        """Number of the pages in ``pages_short`` that the model itself has to give up, because of its cap."""
        model = self._models[replica_id]
        if model.cap_pages is None:
            return 0
        needed = sum(b.pages_needed(count) for b, count in zip(model.groups, num_blocks, strict=True))
        return max(0, needed - max(0, model.cap_pages - model.held_pages)) if needed else 0

    def can_allocate(self, replica_id: str, num_blocks: Sequence[int]) -> bool:
        """Whether ``num_blocks[g]`` more blocks of every group g fit, all together, while every idle block
        stays."""
        return self.pages_short(replica_id, num_blocks) <= 0

    def allocate(self, replica_id: str, group: int, num_blocks: int) -> NDArray[np.int64] | None:
        """Takes blocks of one group, all or nothing.

        Returns:
            Granule offsets int64 ``[num_blocks]``, or None if there is no room now: the limit, the
            model's cap or the other models' guarantees forbid it, or the device has less memory than was
            leased (then ``can_allocate`` may have said otherwise). The blocks' contents are arbitrary.
        """
        blocks = self._models[replica_id].groups[group]
        num_pages = blocks.pages_needed(num_blocks)
        if num_pages:
            if num_pages > self._room(replica_id) or not self._pages.have_free(num_pages):
                return None
            for _ in range(num_pages):
                blocks.add_page(self._pages.free.pop())
        return blocks.take(num_blocks)

    def free(self, replica_id: str, group: int, offsets: NDArray[np.int64]) -> None:
        """Gives blocks back. Any model may take a page that empties, at once; while the pool is over its
        limit, the page leaves instead."""
        emptied = self._models[replica_id].groups[group].give(offsets)
        if emptied:
            self._pages.give(emptied)

    def set_idle(self, replica_id: str, group: int, offsets: NDArray[np.int64]) -> None:
        """Marks blocks in use as idle: nobody uses them any more, and their contents are kept."""
        self._models[replica_id].groups[group].set_idle(offsets)

    def set_in_use(self, replica_id: str, group: int, offsets: NDArray[np.int64]) -> None:
        """Marks idle blocks as in use again."""
        self._models[replica_id].groups[group].set_in_use(offsets)

    def longest_idle(
        self, num_pages: int, wanted_by: str | None, *, own: bool = False
    ) -> list[tuple[str, int, NDArray[np.int64]]]:
        """Idle blocks of up to ``num_pages`` pages that have no block in use: of all models' pages, those
        that have been so for the longest.

        Args:
            wanted_by: the model that wants the pages. Pages within another model's guarantee would be of no
                use to it and are left out. None: no page is left out.
            own: consider only the pages of ``wanted_by``.

        Returns:
            Model, group and granule offsets int64 [n] of its blocks; each group at most once.
        """
        spare = {
            name: model.num_idle_pages
            if wanted_by in (None, name)
            else model.held_pages - model.guaranteed_pages
            for name, model in self._models.items()
            if name == wanted_by or not own
        }
        by_age = heapq.merge(
            *(
                _by_age(name, g, blocks)
                for name, model in self._models.items()
                if spare.get(name, 0) > 0
                for g, blocks in enumerate(model.groups)
            )
        )
        return [
            (name, g, self._models[name].groups[g].idle_offsets(pages))
            for name, g, pages in _first_pages(by_age, num_pages, spare)
        ]

    def sparsest(self, num_pages: int, wanted_by: str | None) -> list[tuple[str, int, list[int]]]:
        """Finds up to ``num_pages`` pages whose blocks in use would fit into other pages of their groups: of
        all models' pages, those with the fewest blocks in use.

        Args:
            wanted_by: the model that wants the pages. Its own pages are left out, and so are those within
                other models' guarantees. None: no page is left out.

        Returns:
            Model, group and pages; each group at most once.
        """
        spare = {
            name: model.pages_in_use - (0 if wanted_by is None else model.guaranteed_pages)
            for name, model in self._models.items()
            if name != wanted_by
        }
        candidates = sorted(
            (num_live, name, g, page)
            for name in spare
            for g, blocks in enumerate(self._models[name].groups)
            for num_live, page in blocks.sparsest_pages(num_pages)
        )
        return _first_pages(candidates, num_pages, spare)

    def blocks_of(self, replica_id: str, group: int) -> GroupBlocks:
        """The books of one group, for calls that concern no other group's pages."""
        return self._models[replica_id].groups[group]

    def blocks_short(self, replica_id: str, num_blocks: Sequence[int]) -> list[int]:
        """For each group g, how many of ``num_blocks[g]`` more blocks do not fit into the pages that it
        holds."""
        pairs = zip(self._models[replica_id].groups, num_blocks, strict=True)
        return [max(0, count - blocks.num_vacant) for blocks, count in pairs]

    def set_limit(self, num_bytes: int) -> None:
        """Sets the lease, null page included; rounded down to pages, never below the null page. Opens the pool.
        Beyond it nothing is allocated from now on, and each page that empties leaves; ``pages_over_limit`` counts
        those that must still."""
        self.open()
        self._pages.set_limit(num_bytes // PAGE_BYTES)

    def let_leave(self, most_pages: int) -> int:
        """Takes the memory from up to so many free pages that are beyond the lease and behind the fence; returns how
        many left."""
        return self._pages.let_leave(most_pages)

    def usage(self, replica_id: str) -> KVUsage:
        model = self._models[replica_id]
        live_bytes = sum(blocks.num_live * blocks.group.block_bytes for blocks in model.groups)
        idle_bytes = sum(blocks.num_idle * blocks.group.block_bytes for blocks in model.groups)
        return KVUsage(model.held_pages * PAGE_BYTES, live_bytes, idle_bytes)

    def share_of(self, replica_id: str) -> KVShare:
        model = self._models[replica_id]
        cap_bytes = None if model.cap_pages is None else model.cap_pages * PAGE_BYTES
        return KVShare(model.guarantee_pages * PAGE_BYTES, cap_bytes)

    def fragmentation(self) -> KVFragmentation:
        """Committed bytes that hold no block. Together with the null page and all models' blocks, in use and
        idle, they add up to ``committed_bytes``."""
        groups = [blocks for model in self._models.values() for blocks in model.groups]
        return KVFragmentation(
            free_bytes=(len(self._pages.free) + self._pages.num_leaving) * PAGE_BYTES,
            vacant_bytes=sum(blocks.num_vacant * blocks.group.block_bytes for blocks in groups),
            tail_bytes=sum(blocks.num_pages * blocks.group.tail_bytes for blocks in groups),
        )

    def check_integrity(self) -> None:
        """Checks that every page is in exactly one state and every place in it is counted once. Meant for
        idle moments and tests, as it walks everything.

        Raises:
            InternalError: the books do not add up.
        """
        groups = [blocks for model in self._models.values() for blocks in model.groups]
        for blocks in groups:
            blocks.check()
        self._pages.check_integrity(page for blocks in groups for page in blocks.pages)

    def _room(self, replica_id: str, keeps: _Keeps = _Keeps.ALL_PAGES) -> int:
        """Number of pages that the model may take now; if it is negative, as many must come free first. The
        pages that remain must cover the other models' guarantees.

        Args:
            keeps: which of its pages each other model is counted with; the model itself always keeps at least
                its pages in use.
        """
        promised = held = 0
        for name, other in self._models.items():
            pages = other.held_pages if keeps is _Keeps.ALL_PAGES else other.pages_in_use
            if name == replica_id:
                held = pages
            else:
                if keeps in (_Keeps.FEWEST_PAGES, _Keeps.NONE_IF_PARKED):
                    pages = 0 if other.is_parked and keeps is _Keeps.NONE_IF_PARKED else other.fewest_pages
                promised += max(pages, other.guaranteed_pages)
        room = self._pages.limit - 1 - held - promised
        cap_pages = self._models[replica_id].cap_pages
        return room if cap_pages is None else min(room, cap_pages - held)


def _first_pages(
    ordered: Iterable[tuple[int, str, int, int]], num_pages: int, spare: dict[str, int]
) -> list[tuple[str, int, list[int]]]:
    """Picks the first ``num_pages`` pages, but of no model more than it can spare.

    Args:
        ordered: rank, model, group and page.
        spare: number of pages that each model can spare; used up here.

    Returns:
        Model, group and pages; each group once.
    """
    chosen: dict[tuple[str, int], list[int]] = {}
    for _, name, g, page in ordered:
        if num_pages <= 0:
            break
        if spare[name] > 0:
            spare[name] -= 1
            num_pages -= 1
            chosen.setdefault((name, g), []).append(page)
    return [(name, g, pages) for (name, g), pages in chosen.items()]


def _by_age(replica_id: str, group: int, blocks: GroupBlocks) -> Iterator[tuple[int, str, int, int]]:
    """Idle pages of a group, the longest idle first: since when (by the pool's clock), model, group and
    page."""
    for page, since in blocks.idle_pages.items():
        yield since, replica_id, group, page
