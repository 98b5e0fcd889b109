"""Block tables over a real KV pool: what is taken, what is given back, and nothing half done."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from support.kv_moves import move_nothing

from engines.torch.kv.block_tables import BlockTables
from engines.torch.kv.prefix import Prefix
from memory_manager.arena.host_arena import HostArena
from memory_manager.kv.block_store import BlockStore
from memory_manager.kv.pool import KVPool
from memory_manager.kv_spec import PAGE_BYTES, KVGroup

FULL = KVGroup((0,), "full", bytes_per_token_layer=PAGE_BYTES // 64, block_tokens=16)  # 4 blocks a page
WINDOW = KVGroup((1,), "window", PAGE_BYTES // 64, block_tokens=16, window_tokens=20)


def slots(*values: int) -> np.ndarray:  # type: ignore[type-arg]
    return np.array(values, np.int64)


@pytest.fixture
def pool() -> Iterator[KVPool]:
    arena = HostArena(16 * PAGE_BYTES)
    pool = KVPool(arena, 8 * PAGE_BYTES)
    pool.set_limit(5 * PAGE_BYTES)  # four pages, sixteen blocks
    yield pool
    pool.check_integrity()
    arena.close()


@pytest.fixture
def cache(pool: KVPool) -> Iterator[BlockStore]:
    cache = BlockStore(pool)
    cache.add_model("m", (FULL, WINDOW), 0, None, move_nothing)
    yield cache
    cache.check_integrity()


@pytest.fixture
def blocks(cache: BlockStore) -> BlockTables:
    return BlockTables(cache, "m", (FULL, WINDOW), num_slots=4, max_model_len=128)


def num_held(blocks: BlockTables) -> list[list[int]]:
    return [(table != 0).sum(axis=1).tolist() for table in blocks.tables]


def test_full_groups_get_all_known_tokens_and_window_groups_the_next_chunk(blocks: BlockTables) -> None:
    assert blocks.extend(slots(2, 0), slots(50, 16), slots(17, 16))
    assert num_held(blocks) == [[1, 0, 4, 0], [1, 0, 2, 0]]
    assert blocks.extend(slots(2, 0), slots(50, 17), slots(50, 17))
    assert num_held(blocks) == [[2, 0, 4, 0], [2, 0, 4, 0]]
    blocks.check_integrity(slots(0, 2))


def test_no_room_changes_nothing(pool: KVPool, blocks: BlockTables) -> None:
    assert blocks.extend(slots(0), slots(64), slots(64))
    before = num_held(blocks), pool.usage("m")
    assert not blocks.extend(slots(1, 2), slots(64, 100), slots(64, 64))
    assert (num_held(blocks), pool.usage("m")) == before
    nothing = Prefix.empty(blocks.groups)
    assert blocks.pages_short(blocks.wanted(nothing, 64, 64, margin_blocks=0)) <= 0
    assert blocks.pages_short(blocks.wanted(nothing, 64, 64, margin_blocks=1)) > 0


def test_blocks_behind_the_window_go_back_and_the_columns_stay(pool: KVPool, blocks: BlockTables) -> None:
    assert blocks.extend(slots(1, 3), slots(60, 10), slots(60, 10))
    kept = blocks.tables[1][1, 2:4].copy()
    blocks.free_behind_windows(slots(1, 3), slots(60, 10))  # the next token sees positions from 41 on
    assert blocks.tables[1][1, :4].tolist() == [0, 0, *kept]
    assert num_held(blocks) == [[0, 4, 0, 1], [0, 2, 0, 1]]
    blocks.free_behind_windows(slots(1, 3), slots(60, 10))
    assert num_held(blocks)[1] == [0, 2, 0, 1]
    blocks.check_integrity(slots(1, 3))
    assert blocks.live_bytes == pool.usage("m").live_bytes


def test_release_gives_back_exactly_what_is_left(pool: KVPool, blocks: BlockTables) -> None:
    assert blocks.extend(slots(0, 1), slots(60, 40), slots(60, 40))
    blocks.free_behind_windows(slots(0, 1), slots(60, 40))
    blocks.release(slots(1))
    assert num_held(blocks) == [[4, 0, 0, 0], [2, 0, 0, 0]]
    blocks.release(slots(0, 1))
    assert pool.usage("m") == (0, 0, 0)
    blocks.check_integrity(slots())


def test_integrity_finds_a_block_in_two_rows(blocks: BlockTables) -> None:
    assert blocks.extend(slots(0, 1), slots(16, 16), slots(16, 16))
    blocks.tables[0][1, 0] = blocks.tables[0][0, 0]
    with pytest.raises(AssertionError, match="other users than rows"):
        blocks.check_integrity(slots(0, 1))
