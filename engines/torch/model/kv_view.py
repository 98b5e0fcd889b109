"""One model's view of the KV pool: strided tensors over the pool's bytes, addressed by granule offsets.

A block is ``[layer][K, V][token][kv head][head dim]`` (``memory_manager.kv_spec``) and may start at any
granule. ``torch.as_strided`` with a stride of one granule makes the granule offset the index itself. The rows
of such a view overlap in memory, which does no harm because only rows that start at blocks are touched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from memory_manager.kv_spec import KVGroup

__all__ = ["KVCacheView"]


class KVCacheView:
    """Reads and writes the KV blocks of one model. It owns no memory and holds no state of a step.

    Invariant: the null block (offset 0) is never written and holds zeros, and ``clear`` has zeroed each block
    before its first token, so whatever the mask hides is finite in every dtype.

    Args:
        pool: uint8 [num_bytes] over the whole address range of the pool.
        groups: the model's KV groups.
        dtype: dtype of the cache's elements.
        num_kv_heads: KV heads of every layer.
        head_dim: width of a head in every layer.

    Raises:
        ValueError: the groups' sizes do not fit this dtype and these heads.
    """

    def __init__(
        self, pool: Tensor, groups: Sequence[KVGroup], dtype: torch.dtype, num_kv_heads: int, head_dim: int
    ) -> None:
        row_bytes = num_kv_heads * head_dim * dtype.itemsize
        for group in groups:
            if group.bytes_per_token_layer != 2 * row_bytes:
                raise ValueError(
                    f"a KV group of {group.bytes_per_token_layer} bytes per token and layer is not one of "
                    f"{num_kv_heads} heads of {head_dim} {dtype}"
                )
        self.groups = tuple(groups)
        self.dtype = dtype
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        elements = pool.view(dtype)
        row_elements = num_kv_heads * head_dim
        self._blocks = [_Blocks(elements, group, row_elements) for group in groups]
        self.group_of_layer = {layer: g for g, group in enumerate(groups) for layer in group.layers}
        self._row_of_layer = {layer: i for group in groups for i, layer in enumerate(group.layers)}

    def clear(self, group: int, offsets: Tensor) -> None:
        """Zeroes all layers of whole blocks. ``offsets``: int64 [n] in granules."""
        self._blocks[group].whole.index_fill_(0, offsets, 0)

    def copy_out(self, group: int, offsets: Tensor, out: Tensor | None = None) -> Tensor:
        """The contents of whole blocks, [n, elements of a block].

        Args:
            offsets: int64 [n] in granules.
            out: takes them, if there is one of that shape.
        """
        return torch.index_select(self._blocks[group].whole, 0, offsets, out=out)

    def copy_in(self, group: int, offsets: Tensor, contents: Tensor) -> None:
        """Writes contents that ``copy_out`` returned to other whole blocks."""
        self._blocks[group].whole.index_copy_(0, offsets, contents)

    def token_rows(self, group: int, offsets: Tensor, positions: Tensor) -> Tensor:
        """The rows to which ``write`` puts tokens: int64 [T], valid for every layer of the group.

        Args:
            offsets: int64 [T] granule offset of each token's block.
            positions: int64 [T] absolute position of each token.
        """
        blocks = self._blocks[group]
        within = positions % self.groups[group].block_tokens
        return offsets * blocks.units_per_granule + within * blocks.units_per_row

    def write(self, layer: int, rows: Tensor, k: Tensor, v: Tensor) -> None:
        """Stores keys and values of one layer.

        Args:
            rows: int64 [T] as ``token_rows`` returns them for the layer's group.
            k: [T, num_kv_heads, head_dim] in the cache's dtype.
            v: the same.
        """
        keys, values = self._blocks[self.group_of_layer[layer]].token_views[self._row_of_layer[layer]]
        keys.index_copy_(0, rows, k.flatten(1))
        values.index_copy_(0, rows, v.flatten(1))

    def gather(self, layer: int, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Copies of the keys and values of whole blocks, ready for attention.

        Args:
            offsets: int64 [n, num_blocks] in granules of the layer's group.

        Returns:
            Keys and values, each [n, num_kv_heads, num_blocks * block_tokens, head_dim].
        """
        keys, values = self._blocks[self.group_of_layer[layer]].block_views[self._row_of_layer[layer]]
        flat = offsets.flatten()
        shape = (offsets.shape[0], -1, self.num_kv_heads, self.head_dim)
        return (
            keys.index_select(0, flat).view(shape).transpose(1, 2),
            values.index_select(0, flat).view(shape).transpose(1, 2),
        )


class _Blocks:
    """The strided views of one KV group.

    ``whole`` and ``block_views`` are indexed by granule. Tokens need a finer step, since a granule need not
    hold a whole number of tokens: ``token_views`` are indexed in units, the greatest length that divides
    both.
    """

    def __init__(self, elements: Tensor, group: KVGroup, row_elements: int) -> None:
        granule = group.granule_bytes // elements.itemsize
        unit = math.gcd(granule, row_elements)
        self.units_per_granule = granule // unit
        self.units_per_row = row_elements // unit
        part_elements = group.block_tokens * row_elements  # K or V of one layer of a block
        num_parts = 2 * len(group.layers)

        def view(stride: int, length: int, start: int) -> Tensor:
            num_rows = (elements.numel() - start - length) // stride + 1
            return elements.as_strided((num_rows, length), (stride, 1), elements.storage_offset() + start)

        parts = range(0, num_parts * part_elements, part_elements)
        by_granule = [view(granule, part_elements, start) for start in parts]
        by_unit = [view(unit, row_elements, start) for start in parts]
        self.whole = view(granule, num_parts * part_elements, 0)
        self.block_views = list(zip(by_granule[::2], by_granule[1::2], strict=True))
        self.token_views = list(zip(by_unit[::2], by_unit[1::2], strict=True))
