"""The bounds of docs/memory.md on KV memory that is committed and holds nothing, under random traffic."""

from __future__ import annotations

import math
import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_manager.arena.host_arena import HostArena
from memory_manager.kv.pool import KVPool
from memory_manager.kv_spec import PAGE_BYTES as PAGE
from memory_manager.kv_spec import KVGroup, choose_block_tokens

NUM_PAGES = 24
# Bytes of one token of a group: few and many blocks a page, with and without tails.
token_bytes = st.sampled_from([3 * 2048, 9216, 23040, 65536, 131072, 172032, 900_000])


def group(num_bytes: int) -> KVGroup:
    return KVGroup((0,), "full", num_bytes, choose_block_tokens(num_bytes))


@given(
    models=st.lists(st.lists(token_bytes, min_size=1, max_size=2), min_size=1, max_size=3),
    seed=st.integers(0, 2**32),
    num_steps=st.integers(1, 120),
)
@settings(max_examples=40)
def test_committed_pages_follow_the_peak_of_the_blocks_that_they_hold(
    models: list[list[int]], seed: int, num_steps: int
) -> None:
    arena = HostArena(NUM_PAGES * PAGE, stock_limit_bytes=NUM_PAGES * PAGE)
    pool = KVPool(arena, NUM_PAGES * PAGE)
    pool.set_limit(NUM_PAGES * PAGE)
    groups = {(m, g): group(size) for m, sizes in enumerate(models) for g, size in enumerate(sizes)}
    for m, sizes in enumerate(models):
        pool.add_model(str(m), [group(size) for size in sizes], 0, None)
    held: dict[tuple[int, int], list[int]] = {key: [] for key in groups}
    peak = dict.fromkeys(groups, 0)
    idle: dict[tuple[int, int], set[int]] = {key: set() for key in groups}
    choice = random.Random(seed)
    for _ in range(num_steps):
        m, g = key = choice.choice(list(groups))
        step = choice.random()
        if step < 0.5:
            taken = pool.allocate(str(m), g, choice.randint(1, 2 * groups[key].blocks_per_page))
            held[key] += [] if taken is None else taken.tolist()
        elif step < 0.6 and held[key]:
            kept = set(choice.sample(held[key], choice.randint(1, len(held[key])))) - idle[key]
            pool.set_idle(str(m), g, np.array(sorted(kept), np.int64))
            idle[key] |= kept
        elif held[key]:
            given_up = choice.sample(held[key], choice.randint(1, len(held[key])))
            pool.set_in_use(str(m), g, np.array(sorted(idle[key] & set(given_up)), np.int64))
            pool.free(str(m), g, np.array(given_up, np.int64))
            held[key] = [each for each in held[key] if each not in set(given_up)]
            idle[key] -= set(given_up)
        peak[key] = max(peak[key], len(held[key])) if held[key] else 0
        _check(pool, groups, held, peak)
    arena.close()


def _check(
    pool: KVPool,
    groups: dict[tuple[int, int], KVGroup],
    held: dict[tuple[int, int], list[int]],
    peak: dict[tuple[int, int], int],
) -> None:
    found = pool.fragmentation()
    blocks_bytes = sum(len(held[key]) * each.block_bytes for key, each in groups.items())
    # Every committed byte is one of these, and is counted once.
    assert pool.committed_bytes == (
        PAGE + found.free_bytes + found.vacant_bytes + found.tail_bytes + blocks_bytes
    )
    # The bound: a group never holds more pages than the most blocks it held since it was empty need.
    most_pages = sum(math.ceil(peak[key] / each.blocks_per_page) for key, each in groups.items())
    assert pool.committed_bytes - PAGE - found.free_bytes <= most_pages * PAGE
    most_tails = sum(
        math.ceil(peak[key] / each.blocks_per_page) * each.tail_bytes for key, each in groups.items()
    )
    assert found.tail_bytes <= most_tails
    # While they grow, less than one page of each group is vacant.
    if all(len(held[key]) == peak[key] for key in groups):
        assert found.vacant_bytes < sum(each.blocks_per_page * each.block_bytes for each in groups.values())


@given(st.integers(1, PAGE))
def test_the_tail_of_a_page_is_bounded_by_the_choice_of_block_sizes(num_bytes: int) -> None:
    """An eighth of a page at most while a token takes no more than that; a token's size beyond it."""
    each = group(num_bytes)
    assert each.tail_bytes < max(PAGE // 8 + 1, num_bytes)


@given(token_bytes, st.integers(1, 5000), st.integers(0, 400))
def test_a_sequence_leaves_less_than_a_block_unfilled_and_a_window_less_than_two(
    num_bytes: int, num_tokens: int, window: int
) -> None:
    full = group(num_bytes)
    assert 0 <= full.blocks_for_tokens(num_tokens) * full.block_tokens - num_tokens < full.block_tokens
    if window:
        sliding = KVGroup((0,), "window", num_bytes, full.block_tokens, window)
        kept = min(num_tokens, window)
        assert sliding.blocks_for_tokens(num_tokens) * sliding.block_tokens - kept < 2 * full.block_tokens
