"""Attention over the paged KV cache in plain torch, on any device.

A step is planned once per KV group (which blocks to gather, which tokens each token may see), and every layer
then runs that plan: it writes the new keys and values, gathers the blocks and attends. Decodes run together
and prefill chunks run together, padded to the longest. A layer loops over slices only, never over sequences;
slices bound the gathered copy and keep short sequences from being padded to a long one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from engines.torch.model.batch import ForwardBatch
from engines.torch.model.kv_view import KVCacheView
from engines.torch.model.workspace import DEFAULT_WORKSPACE_BYTES
from memory_manager.kv_spec import KVGroup
from mooring.units import MIB

_Integers = TypeVar("_Integers", NDArray[np.int64], Tensor)

__all__ = ["DEFAULT_WORKSPACE_BYTES", "PagedAttention", "slice_bounds"]

_SPLIT_BYTES = 2 * MIB  # a slice costs about as much as gathering this much padding (measured on a CPU)


@dataclass(frozen=True, slots=True)
class _Slice:
    """n sequences, each padded to ``max_query`` new tokens and ``num_blocks`` blocks of context.

    Attributes:
        max_query: number of new tokens of the sequence that has most.
        offsets: int64 [n, num_blocks] granule offsets of the blocks to gather.
        mask: [n, 1, max_query, num_blocks * block_tokens] in the cache's dtype: 0 for a token that is
            attended to, else -inf.
        read_rows: int64 [n * max_query] row of T of each query; padding repeats the sequence's last row.
        write_rows: int64 [n * max_query] row of T of each output; padding goes to the spare row T.
    """

    max_query: int
    offsets: Tensor
    mask: Tensor
    read_rows: Tensor
    write_rows: Tensor


class PagedAttention:
    """Attention of one step of one model.

    Args:
        batch: the step's batch. Blocks whose first token is in it are zeroed here.
        kv: the model's view of the pool.
        workspace_bytes: most bytes that one slice's gathered keys, values and mask may take; a single
            sequence is always run, however long.
    """

    def __init__(
        self, batch: ForwardBatch, kv: KVCacheView, workspace_bytes: int = DEFAULT_WORKSPACE_BYTES
    ) -> None:
        self._kv = kv
        self._num_tokens = batch.token_ids.shape[0]
        self._token_rows: list[Tensor] = []
        self._slices: list[list[_Slice]] = []
        contexts = batch.context_lens.cpu().numpy()
        queries = np.diff(batch.query_start.cpu().numpy())
        kinds = (slice(0, batch.num_decodes), slice(batch.num_decodes, None))
        for g, group in enumerate(kv.groups):
            offsets = batch.write_blocks[g]
            kv.clear(g, offsets[batch.positions % group.block_tokens == 0])
            self._token_rows.append(kv.token_rows(g, offsets, batch.positions))
            slices = []
            for kind in kinds:
                for chosen in _choose_slices(group, contexts[kind], queries[kind], kv.dtype, workspace_bytes):
                    max_query = int(queries[kind][chosen].max())
                    sequences = torch.from_numpy(chosen + (kind.start or 0)).to(batch.positions.device)
                    slices.append(_plan_slice(batch, g, group, sequences, max_query, kv.dtype))
            self._slices.append(slices)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Writes the new keys and values of one layer and attends to everything cached.

        Args:
            layer: index of the layer in the model.
            q: [T, num_heads, head_dim], rotated.
            k: [T, num_kv_heads, head_dim], rotated.
            v: [T, num_kv_heads, head_dim].

        Returns:
            [T, num_heads * head_dim].
        """
        kv = self._kv
        group = kv.group_of_layer[layer]
        kv.write(layer, self._token_rows[group], k, v)
        _, num_heads, head_dim = q.shape
        outputs = q.new_empty((self._num_tokens + 1, num_heads * head_dim))
        for part in self._slices[group]:
            keys, values = kv.gather(layer, part.offsets)
            queries = q.index_select(0, part.read_rows)
            if part.max_query == 1:
                # The query heads of one KV head stand in as its rows: one product for all, no copy.
                queries = queries.view(-1, kv.num_kv_heads, num_heads // kv.num_kv_heads, head_dim)
                attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=part.mask)
            else:
                queries = queries.view(-1, part.max_query, num_heads, head_dim).transpose(1, 2)
                attended = F.scaled_dot_product_attention(
                    queries, keys, values, attn_mask=part.mask, enable_gqa=True
                ).transpose(1, 2)
            outputs.index_copy_(0, part.write_rows, attended.reshape(-1, num_heads * head_dim))
        return outputs[: self._num_tokens]


def slice_bounds(
    lengths: NDArray[np.int64], max_rows_by_length: int, split_at: int
) -> Iterator[tuple[int, int]]:
    """Cuts lengths, sorted from the longest, into runs in which each length is padded to the run's first.

    Args:
        lengths: [n], descending.
        max_rows_by_length: most that rows times padded length may be in a run of more than one row.
        split_at: least padding, in the same unit, that makes another run worth its cost.

    Yields:
        [start, end) of each run; together they cover all rows in order.
    """
    start, num_rows = 0, len(lengths)
    while start < num_rows:
        rest = lengths[start:]
        saved = (rest[0] - rest) * np.arange(len(rest), 0, -1)  # by cutting before each row
        cut = int(saved.argmax())
        if saved[cut] < split_at:
            cut = len(rest)
        end = start + max(1, min(cut, max_rows_by_length // max(1, int(rest[0]))))
        yield start, end
        start = end


def _choose_slices(
    group: KVGroup,
    contexts: NDArray[np.int64],
    queries: NDArray[np.int64],
    dtype: torch.dtype,
    workspace_bytes: int,
) -> Iterator[NDArray[np.int64]]:
    """Indices of the sequences of each slice, the longest first."""
    if len(contexts) == 0:
        return
    num_blocks = -(-contexts // group.block_tokens) - _first_block(group, contexts - queries)
    mask_bytes = int(queries.max()) * dtype.itemsize
    block_bytes = group.block_tokens * (group.bytes_per_token_layer + mask_bytes)
    order = np.argsort(-num_blocks, kind="stable")
    bounds = slice_bounds(num_blocks[order], workspace_bytes // block_bytes, _SPLIT_BYTES // block_bytes)
    for start, end in bounds:
        yield order[start:end]


def _first_block(group: KVGroup, first_position: _Integers) -> _Integers:
    """Column of the first block that a token at ``first_position`` still reads."""
    if group.window_tokens is None:
        return first_position * 0
    return (first_position - group.window_tokens + 1).clip(min=0) // group.block_tokens


def _plan_slice(
    batch: ForwardBatch, g: int, group: KVGroup, sequences: Tensor, max_query: int, dtype: torch.dtype
) -> _Slice:
    device = sequences.device
    starts = batch.query_start[sequences]
    num_queries = batch.query_start[sequences + 1] - starts
    contexts = batch.context_lens[sequences]
    first_positions = contexts - num_queries
    first_blocks = _first_block(group, first_positions)
    end_blocks = -(-contexts // group.block_tokens)
    num_blocks = int((end_blocks - first_blocks).max())
    columns = first_blocks[:, None] + torch.arange(num_blocks, device=device)
    table = batch.block_tables[g]
    offsets = table[sequences[:, None], columns.clamp(max=table.shape[1] - 1)]
    # A sequence cut to a chunk has blocks for its later tokens already, which are not cleared yet.
    offsets = offsets.masked_fill_(columns >= end_blocks[:, None], 0)

    padded = torch.arange(max_query, device=device)
    query_index = torch.minimum(padded, num_queries[:, None] - 1)
    query_positions = (first_positions[:, None] + query_index)[:, :, None]
    within = torch.arange(group.block_tokens, device=device)
    key_positions = (columns[:, :, None] * group.block_tokens + within).flatten(1)[:, None, :]
    hidden = key_positions > query_positions
    if group.window_tokens is not None:
        hidden |= key_positions <= query_positions - group.window_tokens
    mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))

    read_rows = starts[:, None] + query_index
    write_rows = torch.where(padded < num_queries[:, None], read_rows, batch.token_ids.shape[0])
    return _Slice(max_query, offsets, mask[:, None], read_rows.flatten(), write_rows.flatten())
