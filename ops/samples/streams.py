"""Text as one stream of token ids."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

__all__ = ["break_leading_spaces", "token_stream"]

_SPACES = ("▁", "\n")
_BATCH_TEXTS = 32


def token_stream(texts: Iterable[str], tokenizer: Tokenizer, end_id: int) -> NDArray[np.int32]:
    """Ids of every text, each followed by ``end_id``, as one array ``[tokens]``."""
    pieces: list[NDArray[np.int32]] = []
    texts, end = list(texts), np.array([end_id], dtype=np.int32)
    for start in range(0, len(texts), _BATCH_TEXTS):
        for encoded in tokenizer.encode_batch(texts[start : start + _BATCH_TEXTS], add_special_tokens=False):
            pieces += [np.array(encoded.ids, dtype=np.int32), end]
    return np.concatenate(pieces)


def break_leading_spaces(
    stream: NDArray[np.int32], vocab: dict[str, int], share: float, seed: int
) -> NDArray[np.int32]:
    """Writes ``share`` of the tokens that begin with a space or a line break as two: that, and the rest.

    A prompt that ends in a space ends in a token which, in ordinary text, is hardly ever followed by a word;
    this lets the model see it, as dropping merges does (Provilkov et al., BPE-dropout, 2020).
    """
    first = np.full(max(vocab.values()) + 1, -1, dtype=np.int32)
    rest = first.copy()
    for piece, index in vocab.items():
        if piece[0] in _SPACES and len(piece) > 1 and piece[1:] in vocab:
            first[index], rest[index] = vocab[piece[0]], vocab[piece[1:]]
    chosen = (first[stream] >= 0) & (np.random.default_rng(seed).random(len(stream)) < share)
    starts = np.arange(len(stream)) + np.cumsum(chosen) - chosen  # where each token goes
    longer = np.empty(len(stream) + int(chosen.sum()), dtype=np.int32)
    longer[starts] = np.where(chosen, first[stream], stream)
    longer[starts[chosen] + 1] = rest[stream[chosen]]
    return longer
