"""A smaller lease is applied in turns: what goes first, and how much in one turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from support.kv_moves import move_nothing

from engines.torch.shrinking import KVShrinking
from memory_manager.arena.host_arena import HostArena
from memory_manager.kv.block_store import BlockStore
from memory_manager.kv.pool import KVPool
from memory_manager.kv_spec import PAGE_BYTES as PAGE
from memory_manager.kv_spec import KVGroup

NUM_PAGES = 40
WHOLE = KVGroup((0,), "full", PAGE // 16, 16)  # one block a page


class House:
    """A pool whose sequences have three blocks each, and a clock that goes on with each preemption."""

    def __init__(self, arena: HostArena) -> None:
        self.pool = KVPool(arena, NUM_PAGES * PAGE)
        self.pool.leave_behind(self)
        self.pool.set_limit(NUM_PAGES * PAGE)
        self.cache = BlockStore(self.pool)
        self.cache.add_model("m", (WHOLE,), 0, None, move_nothing)
        self.sequences = [self._blocks(3) for _ in range(10)]
        self.shrinking = KVShrinking(self.pool, self.cache, self.preempt, lambda: self.now_s)
        self.now_s = 0.0
        self.preempt_s = 0.003
        self.wanted: list[int] = []
        self.fence_is_open = True

    def _blocks(self, num_blocks: int) -> np.ndarray:
        blocks = self.cache.allocate("m", 0, num_blocks)
        assert blocks is not None
        return blocks

    def mark(self) -> Callable[[], bool]:
        return lambda: self.fence_is_open

    def store_idle(self, num_blocks: int) -> None:
        blocks = self._blocks(num_blocks)
        keys = [number.to_bytes(4, "big") for number in range(num_blocks)]
        self.cache.store("m", 0, keys, blocks)
        self.cache.free("m", 0, blocks)

    def preempt(self, num_pages: int) -> bool:
        assert self.pool.usage("m").idle_bytes == 0, "idle blocks go first"
        self.wanted.append(num_pages)
        if not self.sequences:
            return False
        self.cache.free("m", 0, self.sequences.pop())
        self.now_s += self.preempt_s
        return True


@pytest.fixture
def house() -> Iterator[House]:
    arena = HostArena(NUM_PAGES * PAGE)
    yield House(arena)
    arena.close()


def test_a_turn_ends_when_its_time_is_over_and_the_next_goes_on(house: House) -> None:
    house.cache.set_limit(PAGE)
    remaining = []
    while house.shrinking.is_under_way:
        before = len(house.sequences)
        house.shrinking.take_turn(0.0)
        assert before - len(house.sequences) <= 2, "each takes 3 ms, and a turn 4"
        remaining.append(len(house.sequences))
        assert house.shrinking.has_more == (house.pool.pages_over_limit > 0)
    assert remaining == [8, 6, 4, 2, 0, 0]
    assert house.pool.committed_bytes == PAGE


@pytest.mark.parametrize(("step_s", "num_gone"), [(0.0, 2), (0.014, 5), (0.028, 10), (9.0, 10)])
def test_a_turn_takes_about_as_long_as_a_step(house: House, step_s: float, num_gone: int) -> None:
    house.cache.set_limit(PAGE)
    house.shrinking.take_turn(step_s)
    assert 10 - len(house.sequences) == num_gone


def test_no_turn_is_longer_than_a_reader_would_see_however_long_a_step_is(house: House) -> None:
    house.preempt_s = 0.02
    house.cache.set_limit(PAGE)
    house.shrinking.take_turn(9.0)
    assert len(house.sequences) == 7


def test_a_turn_of_one_long_piece_is_that_piece(house: House) -> None:
    house.preempt_s = 1.0
    house.cache.set_limit(PAGE)
    house.shrinking.take_turn(0.0)
    assert len(house.sequences) == 9


def test_no_sequence_goes_while_free_and_idle_pages_are_enough(house: House) -> None:
    house.store_idle(6)
    house.cache.free("m", 0, house.sequences.pop())
    house.cache.set_limit(28 * PAGE)
    house.shrinking.take_turn(0.0)
    assert not house.shrinking.is_under_way
    assert not house.wanted
    assert house.pool.committed_bytes == 28 * PAGE
    house.cache.set_limit(26 * PAGE)
    house.shrinking.take_turn(0.0)
    assert house.wanted == [2], "of which one sequence frees three"
    assert house.pool.usage("m").held_bytes == 24 * PAGE


def test_pages_that_a_step_may_touch_are_waited_for_and_nothing_more_is_given_up(house: House) -> None:
    house.fence_is_open = False
    house.cache.set_limit(25 * PAGE)
    for _ in range(3):
        house.shrinking.take_turn(0.0)
    assert len(house.sequences) == 8
    assert house.shrinking.is_under_way
    assert not house.shrinking.has_more
    assert house.pool.committed_bytes == 31 * PAGE
    house.fence_is_open = True
    house.shrinking.take_turn(0.0)
    assert not house.shrinking.is_under_way
    assert house.pool.committed_bytes == 25 * PAGE


def test_a_lease_that_grows_again_ends_the_shrinking(house: House) -> None:
    house.cache.set_limit(PAGE)
    house.shrinking.take_turn(0.0)
    house.cache.set_limit(NUM_PAGES * PAGE)
    assert not house.shrinking.is_under_way
    assert not house.shrinking.has_more
    house.shrinking.take_turn(0.0)
    assert len(house.sequences) == 8
