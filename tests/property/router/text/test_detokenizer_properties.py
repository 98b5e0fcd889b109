"""Streamed text is the whole text, on every kind of tokenizer and for every sequence of ids."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.router_doors import byte_fallback_tokenizer, byte_level_tokenizer, llama_decoder, token_table
from tokenizers import Tokenizer, decoders

from router.text.detokenizer import TokenTable
from router.text.stop_strings import StopStrings

TOKENIZERS = {
    "byte-level": byte_level_tokenizer(),
    "llama": byte_fallback_tokenizer(llama_decoder()),
    "gemma": byte_fallback_tokenizer(
        decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    ),
    "metaspace": byte_fallback_tokenizer(
        decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")])
    ),
}
TABLES = {name: token_table(tokenizer) for name, tokenizer in TOKENIZERS.items()}
# A few ids beyond the vocabulary: models pad their embeddings and can sample such.
IDS = st.lists(st.integers(0, 305), max_size=40)
TEXT_WITH_EMOJI = st.lists(
    st.sampled_from(["a", " ", "é", "語", "🦀", "👩‍👩‍👧", " the", "."]), max_size=12
).map("".join)


def streamed(table: TokenTable, ids: list[int], *, skip_special_tokens: bool) -> list[str]:
    detokenizer = table.detokenizer(skip_special_tokens=skip_special_tokens)
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.finish()]


def decoded(tokenizer: Tokenizer, ids: list[int], *, skip_special_tokens: bool = True) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=300)
@given(ids=IDS)
def test_pieces_join_to_the_whole_decode(kind: str, skip: bool, ids: list[int]) -> None:
    whole = decoded(TOKENIZERS[kind], ids, skip_special_tokens=skip)
    assert "".join(streamed(TABLES[kind], ids, skip_special_tokens=skip)) == whole


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=200)
@given(text=TEXT_WITH_EMOJI, cut=st.integers(0, 200))
def test_real_text_cut_anywhere_streams_without_broken_characters(kind: str, text: str, cut: int) -> None:
    ids = TOKENIZERS[kind].encode(text, add_special_tokens=False).ids
    detokenizer = TABLES[kind].detokenizer()
    shown = "".join(detokenizer.push(token_id) for token_id in ids[:cut])
    assert "�" not in shown
    assert (shown + detokenizer.finish()) == decoded(TOKENIZERS[kind], ids[:cut])


STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


def cut_at_first_complete_stop(text: str, stops: list[str], *, include: bool = False) -> tuple[str, bool]:
    """The definition, one character at a time."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: end if include else min(starts)], True
    return text, False


@pytest.mark.parametrize("include", [False, True])
@settings(max_examples=400)
@given(stops=STOPS, pieces=st.lists(st.text("abc", max_size=5), max_size=12))
def test_stop_strings_do_not_depend_on_where_the_text_is_cut(
    include: bool, stops: list[str], pieces: list[str]
) -> None:
    watcher = StopStrings(stops, include=include)
    shown, stopped = "", False
    for piece in pieces:
        text, stopped = watcher.feed(piece)
        shown += text
        if stopped:
            break
    if not stopped:
        shown += watcher.finish()
    assert (shown, stopped) == cut_at_first_complete_stop("".join(pieces), stops, include=include)


@settings(max_examples=300)
@given(stops=STOPS, text=st.text("abc", max_size=30))
def test_nothing_is_held_that_cannot_become_a_stop_string(stops: list[str], text: str) -> None:
    watcher = StopStrings(stops)
    shown, stopped = watcher.feed(text)
    if not stopped:
        held = text[len(shown) :]
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)
