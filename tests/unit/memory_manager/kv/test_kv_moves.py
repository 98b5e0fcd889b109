"""Blocks of one model are moved together where another model is short of pages."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from support.kv_moves import move_nothing

from memory_manager.arena.host_arena import HostArena
from memory_manager.kv.block_store import BlockStore
from memory_manager.kv.pool import KVPool
from memory_manager.kv_spec import PAGE_BYTES as PAGE
from memory_manager.kv_spec import KVGroup

QUARTER = KVGroup((0,), "full", PAGE // 64, block_tokens=16)  # four blocks a page
WHOLE = KVGroup((0,), "full", PAGE // 16, block_tokens=16)
NUM_PAGES = 4


class House:
    """A pool of four pages for two models: "a" has four blocks a page, "b" one."""

    def __init__(self, cache: BlockStore, pool: KVPool) -> None:
        self.cache, self.pool = cache, pool
        self.moves: list[tuple[list[int], list[int]]] = []

    def add(self, guarantee_pages: int = 0) -> None:
        self.cache.add_model("a", [QUARTER], guarantee_pages * PAGE, None, self._move)
        self.cache.add_model("b", [WHOLE], 0, None, move_nothing)

    def spread(self, *kept: list[int]) -> NDArray[np.int64]:
        """Fills a page of "a" for each list and frees all but these blocks of it; returns what is left."""
        assert self.cache.make_room("a", [4 * len(kept)])
        offsets = self.cache.allocate("a", 0, 4 * len(kept))
        assert offsets is not None
        left = np.array([offsets[4 * page + place] for page, places in enumerate(kept) for place in places])
        self.cache.free("a", 0, np.setdiff1d(offsets, left))
        return left

    def _move(self, group: int, sources: NDArray[np.int64], destinations: NDArray[np.int64]) -> None:
        assert group == 0
        self.moves.append((sources.tolist(), destinations.tolist()))


@pytest.fixture
def house() -> Iterator[House]:
    arena = HostArena((NUM_PAGES + 1) * PAGE)
    pool = KVPool(arena, (NUM_PAGES + 1) * PAGE)
    pool.set_limit((NUM_PAGES + 1) * PAGE)
    house = House(BlockStore(pool), pool)
    yield house
    pool.check_integrity()
    house.cache.check_integrity()
    arena.close()


def test_the_sparsest_pages_empty_into_the_others(house: House) -> None:
    house.add()
    left = house.spread([0, 1, 2], [0], [0, 1], [0, 1]).tolist()
    assert house.cache.make_room("b", [2])
    ((sources, destinations),) = house.moves
    assert sorted(sources) in (sorted([left[3], *left[4:6]]), sorted([left[3], *left[6:8]]))
    assert not set(destinations) & set(left)
    assert house.cache.allocate("b", 0, 2) is not None
    assert house.pool.usage("a").held_bytes == 2 * PAGE
    assert house.pool.usage("a").live_bytes == 8 * PAGE // 4


def test_nothing_moves_where_it_would_not_be_enough(house: House) -> None:
    house.add()
    house.spread([0, 1, 2], [0], [0, 1], [0, 1])
    assert not house.cache.can_allocate("b", [3])
    assert not house.cache.make_room("b", [3])
    assert not house.moves


def test_pages_within_a_guarantee_stay(house: House) -> None:
    house.add(guarantee_pages=3)
    house.spread([0], [0], [0], [0])
    assert house.cache.make_room("b", [1])
    assert len(house.moves[0][0]) == 1
    assert house.cache.allocate("b", 0, 1) is not None
    assert not house.cache.can_allocate("b", [1])


def test_nothing_moves_while_idle_blocks_do(house: House) -> None:
    house.add()
    left = house.spread([0], [0], [0, 1, 2], [0, 1, 2])
    keys = [b"%d" % offset for offset in left]
    house.cache.store("a", 0, keys, left)
    house.cache.free("a", 0, left[:1])
    assert house.cache.make_room("b", [1])
    assert not house.moves
    assert house.cache.find("a", 0, keys).tolist() == [0, *left[1:]]


def test_idle_blocks_make_way_for_those_that_move_the_longest_idle_first(house: House) -> None:
    house.add()
    left = house.spread([0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3], [0, 1])
    keys = [b"%d" % offset for offset in left]
    house.cache.store("a", 0, keys, left)
    house.cache.free("a", 0, left[[9, 5, 1]])  # the last one given here is the longest idle
    house.cache.use("a", 0, left[12:13])
    assert house.cache.make_room("b", [1])
    ((sources, destinations),) = house.moves
    assert sources == left[12:14].tolist()
    found = dict(zip(keys, house.cache.find("a", 0, keys).tolist(), strict=True))
    assert [found[key] for key in keys[12:14]] == destinations == left[[1, 5]].tolist()
    assert (found[keys[1]], found[keys[5]], found[keys[9]]) == (0, 0, left[9])
    assert house.cache.num_users("a", 0, np.array(destinations)).tolist() == [2, 1]
    assert house.cache.shared("a", 0).tolist() == destinations[:1]


def test_nothing_moves_into_a_page_that_will_be_given_up(house: House) -> None:
    house.add()
    left = house.spread([0, 1, 2], [0, 1, 2], [0])
    house.cache.store("a", 0, [b"0", b"1", b"2"], left[:3])
    house.cache.free("a", 0, left[:3])  # the first page is idle now, and has a free place
    assert house.cache.make_room("b", [3])
    ((sources, destinations),) = house.moves
    assert sources == [left[6]]
    assert destinations == [left[5] + left[1] - left[0]]
    assert house.cache.allocate("b", 0, 3) is not None


def test_a_smaller_lease_gathers_what_is_spread(house: House) -> None:
    house.add()
    house.spread([0], [0], [0], [0])
    house.cache.set_limit(2 * PAGE)
    while house.pool.pages_to_empty and house.cache.shrink(1):
        house.pool.let_leave(1)
    assert house.pool.committed_bytes == 2 * PAGE
    house.cache.set_limit(PAGE)
    assert not house.cache.shrink(1)
