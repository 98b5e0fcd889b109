"""The KV pool over a real arena of host memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from support.hand_fence import HandFence

from memory_manager.arena.host_arena import HostArena
from memory_manager.kv.pool import KVPool
from memory_manager.kv_spec import PAGE_BYTES as PAGE
from memory_manager.kv_spec import KVGroup
from mooring.errors import InternalError

WHOLE = KVGroup(layers=(0,), kind="full", bytes_per_token_layer=PAGE // 16, block_tokens=16)  # block = page
QUARTER = KVGroup(layers=(0, 1), kind="full", bytes_per_token_layer=PAGE // 128, block_tokens=16)
THIRD = KVGroup(layers=(0,), kind="full", bytes_per_token_layer=640 * 1024, block_tokens=1)  # loses a tail


@pytest.fixture
def arena() -> Iterator[HostArena]:
    arena = HostArena(16 * PAGE)
    yield arena
    arena.close()


@pytest.fixture
def pool(arena: HostArena) -> Iterator[KVPool]:
    pool = KVPool(arena, 16 * PAGE)
    yield pool
    pool.check_integrity()


def _pages(group: KVGroup, offsets: np.ndarray) -> list[int]:
    return [int(offset) * group.granule_bytes // PAGE for offset in offsets]


def test_nothing_is_allocated_without_a_lease(pool: KVPool) -> None:
    pool.add_model("a", [WHOLE], 0, None)
    assert not pool.can_allocate("a", [1])
    assert pool.allocate("a", 0, 1) is None
    assert pool.committed_bytes == 0
    pool.set_limit(PAGE)
    assert pool.committed_bytes == PAGE  # the null page


def test_offsets_are_granules_of_whole_blocks_and_never_the_null_block(pool: KVPool) -> None:
    pool.set_limit(8 * PAGE)
    pool.add_model("a", [THIRD], 0, None)
    offsets = pool.allocate("a", 0, 7)
    assert offsets is not None
    assert offsets.dtype == np.int64
    starts = offsets * THIRD.granule_bytes
    assert len(set(starts.tolist())) == 7
    assert (starts >= PAGE).all()
    assert (starts // PAGE == (starts + THIRD.block_bytes - 1) // PAGE).all()  # no block straddles pages
    assert (starts % PAGE % THIRD.block_bytes == 0).all()


def test_blocks_are_memory_that_nobody_else_writes(pool: KVPool, arena: HostArena) -> None:
    pool.set_limit(8 * PAGE)
    pool.add_model("a", [QUARTER, THIRD], 0, None)
    memory = arena.tensor(pool.address_range)
    blocks = []
    for index, group in enumerate((QUARTER, THIRD)):
        offsets = pool.allocate("a", index, 5)
        assert offsets is not None
        blocks += [(int(offset) * group.granule_bytes, group.block_bytes) for offset in offsets]
    for value, (start, length) in enumerate(blocks):
        memory[start : start + length] = value
    for value, (start, length) in enumerate(blocks):
        assert bool((memory[start : start + length] == value).all())
    assert not bool(memory[:PAGE].any())  # the null page was not touched


def test_can_allocate_counts_all_groups_together(pool: KVPool) -> None:
    pool.set_limit(3 * PAGE)
    pool.add_model("a", [QUARTER, WHOLE], 0, None)
    assert pool.can_allocate("a", [8, 0])
    assert pool.can_allocate("a", [4, 1])
    assert not pool.can_allocate("a", [5, 1])
    assert pool.can_allocate("a", [0, 0])


def test_a_refused_allocation_takes_nothing(pool: KVPool) -> None:
    pool.set_limit(3 * PAGE)
    pool.add_model("a", [QUARTER], 0, None)
    assert pool.allocate("a", 0, 9) is None
    assert pool.usage("a") == (0, 0, 0)
    assert pool.committed_bytes == PAGE


def test_the_fullest_page_is_filled_first(pool: KVPool) -> None:
    pool.set_limit(8 * PAGE)
    pool.add_model("a", [QUARTER], 0, None)
    offsets = pool.allocate("a", 0, 12)
    assert offsets is not None
    by_page: dict[int, list[int]] = {}
    for page, offset in zip(_pages(QUARTER, offsets), offsets, strict=True):
        by_page.setdefault(page, []).append(int(offset))
    first, second, third = sorted(by_page)
    for page, count in ((first, 3), (second, 1), (third, 2)):
        pool.free("a", 0, np.array(by_page[page][:count]))
    refilled = pool.allocate("a", 0, 5)
    assert refilled is not None
    assert _pages(QUARTER, refilled) == [second, third, third, first, first]
    assert pool.usage("a").held_bytes == 3 * PAGE


def test_a_page_emptied_by_one_model_is_anothers_in_the_next_call(pool: KVPool, arena: HostArena) -> None:
    pool.set_limit(3 * PAGE)
    pool.add_model("a", [WHOLE], 0, None)
    pool.add_model("b", [QUARTER], 0, None)
    held = pool.allocate("a", 0, 2)
    assert held is not None
    assert pool.allocate("b", 0, 1) is None
    pool.free("a", 0, held[:1])
    committed = arena.committed_bytes
    taken = pool.allocate("b", 0, 4)
    assert taken is not None
    assert _pages(QUARTER, taken) == _pages(WHOLE, held[:1]) * 4
    assert arena.committed_bytes == committed  # only lists changed


def test_guarantees_of_others_stay_free_and_ones_own_can_always_be_drawn(pool: KVPool) -> None:
    pool.set_limit(11 * PAGE)
    pool.add_model("a", [WHOLE], 0, None)
    pool.add_model("b", [WHOLE], 4 * PAGE, None)
    assert not pool.can_allocate("a", [7])
    assert pool.allocate("a", 0, 6) is not None
    assert pool.allocate("a", 0, 1) is None
    own = pool.allocate("b", 0, 4)
    assert own is not None
    pool.free("b", 0, own)
    assert pool.allocate("a", 0, 1) is None
    pool.remove_model("b")  # the guarantee ends with the model
    assert pool.allocate("a", 0, 4) is not None


def test_a_cap_holds_even_when_pages_are_free(pool: KVPool) -> None:
    pool.set_limit(16 * PAGE)
    pool.add_model("a", [QUARTER, WHOLE], 0, 3 * PAGE + 1)
    assert pool.allocate("a", 0, 8) is not None
    assert not pool.can_allocate("a", [0, 2])
    assert pool.allocate("a", 1, 1) is not None
    assert pool.allocate("a", 1, 1) is None


def test_lowering_the_limit_lets_free_pages_leave_so_many_at_once(pool: KVPool, arena: HostArena) -> None:
    pool.set_limit(8 * PAGE)
    pool.add_model("a", [WHOLE], 0, None)
    held = pool.allocate("a", 0, 7)
    assert held is not None
    pool.free("a", 0, held[:5])
    assert pool.committed_bytes == 8 * PAGE  # free pages stay mapped for the next taker
    pool.set_limit(4 * PAGE)
    assert (pool.pages_over_limit, pool.pages_to_empty) == (4, 0)
    assert pool.let_leave(3) == 3
    assert pool.committed_bytes == arena.committed_bytes == 5 * PAGE
    assert pool.let_leave(3) == 1
    assert pool.committed_bytes == arena.committed_bytes == 4 * PAGE
    assert pool.let_leave(3) == 0


def test_pages_leave_behind_the_fence_and_count_until_then(pool: KVPool, arena: HostArena) -> None:
    fence = HandFence()
    pool.leave_behind(fence)
    pool.set_limit(8 * PAGE)
    pool.add_model("a", [WHOLE], 0, None)
    held = pool.allocate("a", 0, 7)
    assert held is not None
    pool.set_limit(4 * PAGE)
    pool.free("a", 0, held[:1])
    pool.free("a", 0, held[1:5])
    assert pool.let_leave(8) == 0
    assert (pool.pages_over_limit, pool.pages_to_empty) == (4, 0)
    assert pool.committed_bytes == arena.committed_bytes == 8 * PAGE
    assert pool.fragmentation().free_bytes == 5 * PAGE, "one of them may stay"
    pool.check_integrity()
    fence.num_passed = 1
    assert pool.let_leave(8) == 1
    assert pool.committed_bytes == arena.committed_bytes == 7 * PAGE
    fence.num_passed = 2
    assert pool.let_leave(8) == 3
    assert pool.committed_bytes == arena.committed_bytes == 4 * PAGE
    pool.check_integrity()


def test_pages_in_quarantine_come_back_if_the_lease_grows(pool: KVPool, arena: HostArena) -> None:
    fence = HandFence()
    pool.leave_behind(fence)
    pool.set_limit(8 * PAGE)
    pool.add_model("a", [WHOLE], 0, None)
    held = pool.allocate("a", 0, 7)
    assert held is not None
    pool.set_limit(2 * PAGE)
    pool.free("a", 0, held[:6])
    assert pool.allocate("a", 0, 1) is None
    pool.set_limit(5 * PAGE)
    assert pool.pages_over_limit == 3
    assert pool.allocate("a", 0, 3) is not None
    assert pool.allocate("a", 0, 1) is None
    assert arena.committed_bytes == 8 * PAGE
    fence.num_passed = fence.num_marked
    assert pool.let_leave(8) == 3
    assert arena.committed_bytes == 5 * PAGE
    pool.check_integrity()


def test_held_pages_over_the_limit_leave_as_they_empty(pool: KVPool, arena: HostArena) -> None:
    pool.set_limit(6 * PAGE)
    pool.add_model("a", [WHOLE], 0, None)
    held = pool.allocate("a", 0, 5)
    assert held is not None
    pool.set_limit(3 * PAGE)
    assert (pool.pages_over_limit, pool.pages_to_empty) == (3, 3)
    assert pool.allocate("a", 0, 1) is None
    pool.free("a", 0, held[:2])
    assert (pool.pages_over_limit, pool.pages_to_empty) == (3, 1)
    pool.let_leave(8)
    assert arena.committed_bytes == 4 * PAGE
    pool.free("a", 0, held[2:4])
    pool.let_leave(8)
    assert pool.pages_over_limit == 0
    pool.set_limit(3 * PAGE)
    assert pool.allocate("a", 0, 1) is not None
    pool.set_limit(8 * PAGE)
    assert pool.allocate("a", 0, 5) is not None


def test_the_limit_is_whole_pages_and_stays_within_the_range(pool: KVPool) -> None:
    pool.set_limit(3 * PAGE - 1)
    assert pool.limit_bytes == 2 * PAGE
    pool.set_limit(0)
    assert pool.limit_bytes == PAGE
    pool.set_limit(1000 * PAGE)
    assert pool.limit_bytes == 16 * PAGE


def test_usage_tells_pages_from_live_blocks(pool: KVPool) -> None:
    pool.set_limit(8 * PAGE)
    pool.add_model("a", [QUARTER, THIRD], 0, None)
    pool.allocate("a", 0, 5)
    pool.allocate("a", 1, 1)
    assert pool.usage("a") == (3 * PAGE, 5 * QUARTER.block_bytes + THIRD.block_bytes, 0)


def test_a_device_with_less_memory_than_was_leased_is_no_room_and_no_crash() -> None:
    arena = HostArena(4 * PAGE)
    pool = KVPool(arena, 16 * PAGE)
    pool.set_limit(16 * PAGE)
    pool.add_model("a", [WHOLE], 0, None)
    assert pool.allocate("a", 0, 4) is None
    pool.check_integrity()
    assert pool.allocate("a", 0, 3) is not None
    pool.check_integrity()
    arena.close()


@pytest.mark.parametrize("offset", [0, 1, -1])
def test_freeing_what_was_not_allocated_is_a_bug_told(pool: KVPool, offset: int) -> None:
    pool.set_limit(8 * PAGE)
    pool.add_model("a", [QUARTER], 0, None)
    pool.allocate("a", 0, 1)
    with pytest.raises(InternalError):
        pool.free("a", 0, np.array([offset]))


def test_freeing_twice_is_a_bug_told(pool: KVPool) -> None:
    pool.set_limit(8 * PAGE)
    pool.add_model("a", [QUARTER], 0, None)
    held = pool.allocate("a", 0, 2)
    assert held is not None
    pool.free("a", 0, held[:1])
    with pytest.raises(InternalError):
        pool.free("a", 0, held[:1])


def test_a_model_that_holds_blocks_cannot_leave(pool: KVPool) -> None:
    pool.set_limit(8 * PAGE)
    pool.add_model("a", [QUARTER], 0, None)
    held = pool.allocate("a", 0, 1)
    assert held is not None
    with pytest.raises(InternalError, match="still holds 1 pages"):
        pool.remove_model("a")
    with pytest.raises(InternalError, match="already"):
        pool.add_model("a", [QUARTER], 0, None)
    pool.free("a", 0, held)
    pool.remove_model("a")


def test_a_block_larger_than_a_page_is_refused(pool: KVPool) -> None:
    with pytest.raises(ValueError, match="split"):
        pool.add_model("a", [KVGroup((0,), "full", PAGE, 2)], 0, None)
