"""Keys of blocks, and how long a prefix of stored blocks is."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engines.torch.kv.prefix import BlockKeys, first_seen_column, longest_prefix_tokens, root_key
from memory_manager.kv_spec import KVGroup

FULL = KVGroup((0,), "full", 64, block_tokens=4)
OTHER = KVGroup((1,), "full", 64, block_tokens=8)
TOKENS = np.arange(40, dtype=np.int32)


def test_a_key_depends_on_all_tokens_up_to_its_block() -> None:
    keys = BlockKeys(b"root", [FULL]).keys(0, TOKENS, 0, 10)
    assert len(set(keys)) == 10
    changed = TOKENS.copy()
    changed[9] = 99
    assert [
        a == b for a, b in zip(keys, BlockKeys(b"root", [FULL]).keys(0, changed, 0, 10), strict=True)
    ] == ([True] * 2 + [False] * 8)


def test_keys_do_not_depend_on_how_many_are_asked_for_at_once() -> None:
    at_once, bit_by_bit = BlockKeys(b"root", [FULL, OTHER]), BlockKeys(b"root", [FULL, OTHER])
    assert bit_by_bit.keys(0, TOKENS[:8], 0, 2) == at_once.keys(0, TOKENS, 0, 10)[:2]
    assert bit_by_bit.keys(0, TOKENS, 1, 10) == at_once.keys(0, TOKENS, 1, 10)
    assert bit_by_bit.keys(1, TOKENS, 0, 5) == at_once.keys(1, TOKENS, 0, 5)
    assert set(at_once.keys(0, TOKENS, 0, 10)).isdisjoint(at_once.keys(1, TOKENS, 0, 5))


def test_a_root_tells_weights_dtypes_and_scopes_apart() -> None:
    parts = [
        (b"a", "float32", b"x"),
        (b"b", "float32", b"x"),
        (b"a", "bfloat16", b"x"),
        (b"a", "float32", b""),
    ]
    # Nothing moves from one part to the next.
    parts += [(b"af", "loat32", b"x"), (b"a", "float3", b"2x")]
    assert len({root_key(*each) for each in parts}) == len(parts)


def _longest_by_trying(groups: list[KVGroup], stored: list[list[bool]], max_tokens: int) -> int:
    for num_tokens in range(max_tokens, 0, -1):
        if all(
            num_tokens % group.block_tokens == 0
            and all(has_block[first_seen_column(group, num_tokens) : num_tokens // group.block_tokens])
            for group, has_block in zip(groups, stored, strict=True)
        ):
            return num_tokens
    return 0


@given(st.data())
def test_the_longest_prefix_is_the_one_found_by_trying_all(data: st.DataObject) -> None:
    groups = [
        KVGroup((i,), "full" if window is None else "window", 64, size, window)
        for i, (size, window) in enumerate(
            data.draw(
                st.lists(
                    st.tuples(st.sampled_from([1, 2, 4, 6]), st.sampled_from([None, 1, 3, 4, 9])),
                    min_size=1,
                    max_size=3,
                )
            )
        )
    ]
    max_tokens = data.draw(st.integers(0, 40))
    stored = []
    for group in groups:
        size = max_tokens // group.block_tokens
        missing = data.draw(st.sets(st.integers(0, max(size - 1, 0)), max_size=3))
        stored.append([column not in missing for column in range(size)])
    found = longest_prefix_tokens(groups, [np.array(each, np.bool_) for each in stored], max_tokens)
    assert found == _longest_by_trying(groups, stored, max_tokens)
