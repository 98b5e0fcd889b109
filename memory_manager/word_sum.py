"""The checksum of memory that others can write to: the sum of its 64-bit words.

A single stray write always changes the sum, and several cancel each other once in 2**64 times. Summing costs
one reading at the rate of the memory; on a GPU too, whose own copy of the weights is summed once it has come.
"""

from __future__ import annotations

import numpy as np

__all__ = ["WORD_BYTES", "add_words", "word_sum"]

WORD_BYTES = 8
_MASK = (1 << 64) - 1


def word_sum(memory: memoryview) -> int:
    """The sum modulo 2**64 of the little-endian words of bytes; the last word is filled up with zeros."""
    whole_bytes = len(memory) - len(memory) % WORD_BYTES
    words = np.frombuffer(memory[:whole_bytes], np.dtype("<u8"))
    return add_words(int(words.sum(dtype=np.uint64)), int.from_bytes(memory[whole_bytes:], "little"))


def add_words(*sums: int) -> int:
    """The sum of bytes that were summed in parts, each part but the last of whole words. Signed sums count
    modulo 2**64."""
    return sum(sums) & _MASK
