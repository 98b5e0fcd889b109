"""Any text survives both kinds of tokenizer."""

from __future__ import annotations

import inspect
import json.decoder
from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from ops.samples.text_tokenizers import END_OF_TEXT, train_byte_level, train_metaspace

# A SentencePiece-like tokenizer reads a literal "▁" as a space, which is the one thing it cannot give back.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁")).filter(
    lambda text: END_OF_TEXT not in text
)
CODE = st.lists(st.sampled_from(["def ", "x", " ", "    ", "\n", "\t", "(", "é", "🙂", "return"])).map(
    "".join
)


@cache
def metaspace() -> Tokenizer:
    return train_metaspace([inspect.getsource(json.decoder)], 600)


@cache
def byte_level() -> Tokenizer:
    return train_byte_level([inspect.getsource(json.decoder)], 600)


@settings(max_examples=200)
@given(TEXT | CODE)
def test_metaspace_round_trip(text: str) -> None:
    assert metaspace().decode(metaspace().encode(text).ids) == text


@settings(max_examples=100)
@given(TEXT | CODE)
def test_byte_level_round_trip(text: str) -> None:
    assert byte_level().decode(byte_level().encode(text).ids) == text
