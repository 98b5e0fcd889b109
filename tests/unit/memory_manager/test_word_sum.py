"""The checksum of host copies that others can write to."""

from __future__ import annotations

import random

from memory_manager.word_sum import add_words, word_sum


def test_it_is_the_sum_of_little_endian_words_the_last_one_filled_up() -> None:
    content = random.Random(0).randbytes(8_003)
    filled = content + bytes(5)
    words = [int.from_bytes(filled[start : start + 8], "little") for start in range(0, len(filled), 8)]
    assert word_sum(memoryview(content)) == sum(words) % 2**64
    assert word_sum(memoryview(b"")) == 0


def test_the_sums_of_parts_add_up() -> None:
    content = memoryview(random.Random(1).randbytes(8_003))
    parts = (content[:16], content[16:4_000], content[4_000:])
    assert add_words(*map(word_sum, parts)) == word_sum(content)


def test_any_byte_that_changes_changes_it() -> None:
    content = bytearray(random.Random(2).randbytes(101))
    before = word_sum(memoryview(content))
    for place in range(len(content)):
        content[place] ^= 0x40
        assert word_sum(memoryview(content)) != before
        content[place] ^= 0x40
