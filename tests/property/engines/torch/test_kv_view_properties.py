"""The KV view over random shapes: what is written is read back, and nothing else is touched."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.torch.model.attention import slice_bounds
from engines.torch.model.kv_view import KVCacheView
from memory_manager.kv_spec import PAGE_BYTES, KVGroup

NUM_PAGES = 3


@st.composite
def shapes(draw: st.DrawFn) -> tuple[tuple[KVGroup, ...], torch.dtype, int, int]:
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    num_kv_heads, head_dim = draw(st.integers(1, 4)), 2 * draw(st.integers(1, 40))
    groups, first = [], 0
    for _ in range(draw(st.integers(1, 2))):
        num_layers = draw(st.integers(1, 4))
        layers = tuple(range(first, first + num_layers))
        row_bytes = num_kv_heads * head_dim * dtype.itemsize
        groups.append(KVGroup(layers, "full", 2 * row_bytes, draw(st.sampled_from([1, 2, 8, 16]))))
        first += num_layers
    return tuple(groups), dtype, num_kv_heads, head_dim


@settings(max_examples=25)
@given(shapes(), st.integers(0, 2**32 - 1))
def test_blocks_read_back_what_was_written(
    shape: tuple[tuple[KVGroup, ...], torch.dtype, int, int], seed: int
) -> None:
    groups, dtype, num_kv_heads, head_dim = shape
    rng = np.random.default_rng(seed)
    pool = torch.full((NUM_PAGES * PAGE_BYTES,), 0x7F, dtype=torch.uint8)
    view = KVCacheView(pool, groups, dtype, num_kv_heads, head_dim)
    untouched = torch.ones(NUM_PAGES * PAGE_BYTES, dtype=torch.bool)
    for g, group in enumerate(groups):
        # Each group has a page of its own, and the last block of it is always among those used.
        in_page = rng.permutation(group.blocks_per_page)[:5]
        in_page[0] = group.blocks_per_page - 1
        in_page = np.unique(in_page)
        rng.shuffle(in_page)
        starts = (g + 1) * PAGE_BYTES + in_page * group.block_bytes
        offsets = torch.from_numpy(starts // group.granule_bytes)
        view.clear(g, offsets)
        for start in starts:
            untouched[start : start + group.block_bytes] = False

        num_tokens = int(rng.integers(1, len(offsets) * group.block_tokens + 1))
        positions = torch.from_numpy(rng.permutation(len(offsets) * group.block_tokens)[:num_tokens])
        rows = view.token_rows(g, offsets[positions // group.block_tokens], positions)
        for layer in group.layers:
            k, v = torch.randn(2, num_tokens, num_kv_heads, head_dim).to(dtype)
            view.write(layer, rows, k, v)
            keys, values = view.gather(layer, offsets[None])
            for written, cached in ((k, keys), (v, values)):
                expected = torch.zeros(len(offsets) * group.block_tokens, num_kv_heads, head_dim, dtype=dtype)
                expected[positions] = written
                assert torch.equal(cached[0].transpose(0, 1), expected)
    assert (pool[untouched] == 0x7F).all()


@given(
    st.lists(st.integers(1, 5000), min_size=1, max_size=60),
    st.integers(1, 20_000),
    st.integers(1, 5000),
)
def test_slices_cover_all_rows_within_the_bound(lengths: list[int], most: int, split_at: int) -> None:
    descending = np.array(sorted(lengths, reverse=True), dtype=np.int64)
    bounds = list(slice_bounds(descending, most, split_at))
    assert [row for start, end in bounds for row in range(start, end)] == list(range(len(lengths)))
    for start, end in bounds:
        assert end == start + 1 or (end - start) * descending[start] <= most


def test_one_long_sequence_does_not_pad_the_short_ones() -> None:
    lengths = np.array([4000] + [10] * 15, dtype=np.int64)
    assert list(slice_bounds(lengths, 10**9, 100)) == [(0, 1), (1, 16)]
    assert list(slice_bounds(np.full(16, 10, dtype=np.int64), 10**9, 100)) == [(0, 16)]
