"""Merges made from scores give the tokens that SentencePiece's own greedy rule gives."""

from __future__ import annotations

import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from model_registry.importing.gguf_sentencepiece import build_sentencepiece

UNKNOWN = "<unk>"
BYTES = [f"<0x{value:02X}>" for value in range(256)]
LETTERS = "▁abc"


def make_pieces(seed: int, num_pieces: int) -> list[str]:
    """A vocabulary as training would make it: each new piece joins two that are there."""
    chooser = random.Random(seed)
    pieces = list(LETTERS)
    while len(pieces) < num_pieces:
        joined = chooser.choice(pieces) + chooser.choice(pieces)
        if joined not in pieces and len(joined) <= 6:
            pieces.append(joined)
    return pieces


def build(pieces: list[str], adds_space: bool) -> tuple[Tokenizer, dict[str, float]]:
    scores = {piece: -float(rank) for rank, piece in enumerate(pieces[len(LETTERS) :])}
    scores |= dict.fromkeys(LETTERS, -1e6)
    tokens = [UNKNOWN, *BYTES, *pieces]
    is_piece = [token in scores for token in tokens]
    by_id = [scores.get(token, 0.0) for token in tokens]
    return build_sentencepiece(tokens, by_id, is_piece, UNKNOWN, adds_space), scores


def greedy(text: str, scores: dict[str, float]) -> list[str]:
    """SentencePiece's rule, as slow as it is plain: join the best pair, the leftmost of equals."""
    symbols = list(text)
    while True:
        pairs = [
            (scores[left + right], -index)
            for index, (left, right) in enumerate(itertools.pairwise(symbols))
            if left + right in scores
        ]
        if not pairs:
            return symbols
        index = -max(pairs)[1]
        symbols[index : index + 2] = [symbols[index] + symbols[index + 1]]


@settings(max_examples=200)
@given(st.integers(0, 10_000), st.integers(5, 40), st.text(" abc", max_size=30))
def test_the_same_text_gives_the_same_pieces(seed: int, num_pieces: int, text: str) -> None:
    tokenizer, scores = build(make_pieces(seed, num_pieces), adds_space=False)
    pieces = tokenizer.encode(text).tokens
    assert "".join(pieces) == text.replace(" ", "▁")
    assert pieces == greedy(text.replace(" ", "▁"), scores)


@settings(max_examples=200)
@given(st.text(max_size=30), st.booleans())
def test_every_text_comes_back(text: str, adds_space: bool) -> None:
    text = text.replace("▁", "")  # the sign for a space cannot be told from one
    tokenizer, _ = build(make_pieces(1, 20), adds_space)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
