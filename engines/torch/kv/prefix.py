"""Prefixes that a sequence need not compute: the keys of its blocks, and the blocks that were found for it.

A key is SHA-256 over the key before it and the block's token ids. The first one's predecessor, the root, says
whose weights wrote the KV, in which dtype, and who may share it; so equal keys mean equal contents, and who may
not share cannot even guess a key.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from memory_manager.kv_spec import KVGroup

__all__ = ["BlockKeys", "Prefix", "first_seen_column", "longest_prefix_tokens", "root_key"]


def root_key(artifact: bytes, kv_dtype: str, scope: bytes) -> bytes:
    """The key before the first ones of the chains of one scope.

    Args:
        artifact: says which weights.
        kv_dtype: of the cache's elements.
        scope: of a ``SequenceRequest``.
    """
    digest = hashlib.sha256()
    for part in (artifact, kv_dtype.encode(), scope):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


class BlockKeys:
    """Keys of one sequence's full blocks, each computed once.

    Args:
        root: of its scope.
        groups: the model's; those with blocks of one size share a chain.
    """

    def __init__(self, root: bytes, groups: Sequence[KVGroup]) -> None:
        self._root = root
        self._sizes = tuple(group.block_tokens for group in groups)
        self._chains: dict[int, list[bytes]] = {size: [] for size in self._sizes}

    def keys(self, group: int, token_ids: NDArray[np.int32], first: int, end: int) -> list[bytes]:
        """Keys of the blocks ``[first, end)`` of one group; ``token_ids`` has all tokens of these and of those
        before them."""
        size = self._sizes[group]
        chain = self._chains[size]
        for start in range(len(chain) * size, end * size, size):
            parent = chain[-1] if chain else self._root
            chain.append(hashlib.sha256(parent + token_ids[start : start + size].tobytes()).digest())
        return chain[first:end]


@dataclass(slots=True)
class Prefix:
    """Blocks for the first tokens of a sequence.

    Attributes:
        num_tokens: whose KV they hold.
        first_columns: by group, of the table; none before it is needed.
        offsets: by group, int64 in granules, of the columns from there on. 0 is a gap, whose contents are in host
            memory, until it has a block.
        gaps: by group, places in ``offsets`` that were gaps.
    """

    num_tokens: int
    first_columns: tuple[int, ...]
    offsets: list[NDArray[np.int64]]
    gaps: list[NDArray[np.int64]] = field(default_factory=list)

    @classmethod
    def empty(cls, groups: Sequence[KVGroup]) -> Prefix:
        return cls(0, (0,) * len(groups), [np.empty(0, np.int64) for _ in groups])

    def num_missing(self, group: int) -> int:
        """Gaps without a block."""
        return int((self.offsets[group] == 0).sum())


def first_seen_column(group: KVGroup, num_computed: int) -> int:
    """The first column of a table that the token at position ``num_computed`` and those after it can see."""
    if group.window_tokens is None:
        return 0
    return max(num_computed - group.window_tokens + 1, 0) // group.block_tokens


def longest_prefix_tokens(
    groups: Sequence[KVGroup], stored: Sequence[NDArray[np.bool_]], max_tokens: int
) -> int:
    """The most tokens that need not be computed: whole blocks of every group, and of each group all the blocks
    that the next token sees.

    Args:
        stored: by group, [n] whether there is a block for each column.
        max_tokens: of the result.
    """
    unit = math.lcm(*(group.block_tokens for group in groups))
    lengths = np.arange(max_tokens // unit, 0, -1) * unit
    for group, has_block in zip(groups, stored, strict=True):
        columns = np.arange(len(has_block))
        last_missing = np.maximum.accumulate(np.where(has_block, -1, columns))
        ends = lengths // group.block_tokens
        if group.window_tokens is None:
            first_seen = np.zeros_like(ends)
        else:
            first_seen = np.maximum(lengths - group.window_tokens + 1, 0) // group.block_tokens
        lengths = lengths[last_missing[ends - 1] < first_seen]
    return int(lengths[0]) if len(lengths) else 0
