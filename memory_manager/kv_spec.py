"""The shape of a model's KV cache, and the arithmetic that the ledger, the pool and the planner share.

A block holds ``block_tokens`` tokens of every layer of one KV group, keys and values together::

    block = [layer][K, V][token][kv head][head dim]

Blocks never straddle pages: a page of ``PAGE_BYTES`` holds ``PAGE_BYTES // block_bytes`` blocks and a
tail that is lost. Addresses are counted in granules, the greatest common divisor of block and page, so
that one 64-bit number names a block anywhere in the pool (Kwon et al., PagedAttention, SOSP 2023, with
one pool under several models).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mooring.units import MIB

__all__ = [
    "PAGE_BYTES",
    "KVGroup",
    "choose_block_tokens",
    "kv_bytes_for_tokens",
    "round_to_pages",
]

PAGE_BYTES = 2 * MIB

KVKind = Literal["full", "window", "latent", "state"]


@dataclass(frozen=True, slots=True)
class KVGroup:
    """Layers of one model whose KV has one shape and one lifetime.

    Attributes:
        layers: indices of the model's layers, in order; layer ``layers[i]`` is row i of a block.
        kind: ``full`` keeps every token, ``window`` only the last ``window_tokens``; ``latent`` (MLA) and
            ``state`` (Mamba) have their place here and no engine yet.
        bytes_per_token_layer: bytes of one token in one layer, K and V together, quantization scales
            included.
        block_tokens: tokens in a block.
        window_tokens: with kind ``window``, how far back a token is still read; else None.
    """

    layers: tuple[int, ...]
    kind: KVKind
    bytes_per_token_layer: int
    block_tokens: int
    window_tokens: int | None = None

    @property
    def bytes_per_token(self) -> int:
        return self.bytes_per_token_layer * len(self.layers)

    @property
    def block_bytes(self) -> int:
        return self.bytes_per_token * self.block_tokens

    @property
    def granule_bytes(self) -> int:
        """Unit of block addresses: divides both the page and the block."""
        return math.gcd(PAGE_BYTES, self.block_bytes)

    @property
    def blocks_per_page(self) -> int:
        return PAGE_BYTES // self.block_bytes

    @property
    def tail_bytes(self) -> int:
        """Bytes at the end of a page, where no block fits any more."""
        return PAGE_BYTES - self.blocks_per_page * self.block_bytes

    def blocks_for_tokens(self, num_tokens: int) -> int:
        """Most blocks that one sequence of ``num_tokens`` tokens ever holds at once."""
        if self.kind == "window" and self.window_tokens is not None:
            # The window may start inside a block, and a prefill chunk is freed behind only afterwards.
            in_window = -(-self.window_tokens // self.block_tokens) + 1
            return min(-(-num_tokens // self.block_tokens), in_window)
        return -(-num_tokens // self.block_tokens)


def round_to_pages(num_bytes: int) -> int:
    """The next multiple of ``PAGE_BYTES``."""
    return -(-num_bytes // PAGE_BYTES) * PAGE_BYTES


def choose_block_tokens(bytes_per_token: int, preferred: int = 16) -> int:
    """Tokens in a block, so that little of a page is lost to its tail.

    Returns ``preferred`` if that loses at most an eighth of the page; else the power of two from 64 down to 1
    that loses least (of two that lose the same, the larger).

    Args:
        bytes_per_token: bytes of one token in all layers of the group.

    Raises:
        ValueError: one token is larger than a page; the layers must be split into several groups.
    """
    if bytes_per_token > PAGE_BYTES:
        raise ValueError(f"a token of {bytes_per_token} bytes exceeds a page: split the layers into groups")

    def lost(block_tokens: int) -> int:
        block_bytes = bytes_per_token * block_tokens
        return PAGE_BYTES % block_bytes if block_bytes <= PAGE_BYTES else PAGE_BYTES

    if lost(preferred) * 8 <= PAGE_BYTES:
        return preferred
    return min((64, 32, 16, 8, 4, 2, 1), key=lambda tokens: (lost(tokens), -tokens))


def kv_bytes_for_tokens(groups: Sequence[KVGroup], num_tokens: int) -> int:
    """Bytes of the whole pages that one sequence of ``num_tokens`` tokens needs if it is alone in the
    pool."""
    pages = sum(-(-group.blocks_for_tokens(num_tokens) // group.blocks_per_page) for group in groups)
    return pages * PAGE_BYTES
