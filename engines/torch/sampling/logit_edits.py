"""What callers change of single logits: biases and bad words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.api import SamplingParams
from engines.torch.scheduling.sequences import SequenceTable

__all__ = ["LogitChanges", "LogitEdits", "has_edits"]

_ANY = -1  # in the beginning of a word: whatever stands there
_NOTHING = -2  # before the output: no token of any word


def has_edits(params: SamplingParams) -> bool:
    """Whether a sequence of these parameters changes logits of its own."""
    return bool(params.logit_bias or params.bad_words_ids)


@dataclass(slots=True)
class LogitChanges:
    """Numbers to add to single logits of one step; -inf bars a token.

    Attributes:
        rows: int64 [E], of the step's logits.
        token_ids: int64 [E].
        values: float32 [E]; where a logit has several, all are added.
    """

    rows: NDArray[np.int64]
    token_ids: NDArray[np.int64]
    values: NDArray[np.float32]


@dataclass(slots=True)
class _Edits:
    """Of one sequence or of many, one after the other.

    Attributes:
        bias_slots, bias_ids: int64 [B]. biases: float32 [B].
        word_slots, word_ends: int64 [W]; a word's last token.
        word_starts: int64 [W, L], the tokens before it, the last one rightmost, padded with ``_ANY``.
    """

    bias_slots: NDArray[np.int64]
    bias_ids: NDArray[np.int64]
    biases: NDArray[np.float32]
    word_slots: NDArray[np.int64]
    word_ends: NDArray[np.int64]
    word_starts: NDArray[np.int64]


class LogitEdits:
    """Biases and bad words of the running sequences that have any, laid out flat, so that a step finds what to
    change in all of its rows at once.

    A bad word's last token is barred where the tokens before it are the end of the output. As in vLLM, a word
    that began in the prompt may be completed: the output did not say it.

    Args:
        num_slots: of the table whose sequences these are.
    """

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._of_slot: dict[int, _Edits] = {}
        self._all: _Edits | None = None  # of all slots; None where it has to be laid out anew

    def slots(self) -> set[int]:
        """Of the sequences that have any."""
        return set(self._of_slot)

    def add(self, slot: int, params: SamplingParams) -> None:
        """Keeps what the sequence in ``slot`` asks for."""
        starts, ends = _split(params.bad_words_ids)
        self._of_slot[slot] = _Edits(
            bias_slots=np.full(len(params.logit_bias), slot, np.int64),
            bias_ids=np.array([token_id for token_id, _ in params.logit_bias], np.int64),
            biases=np.array([bias for _, bias in params.logit_bias], np.float32),
            word_slots=np.full(len(ends), slot, np.int64),
            word_ends=ends,
            word_starts=starts,
        )
        self._all = None

    def remove(self, slot: int) -> None:
        """Forgets the sequence in ``slot``, if it had any."""
        if self._of_slot.pop(slot, None) is not None:
            self._all = None

    def changes(self, table: SequenceTable, slots: NDArray[np.int64]) -> LogitChanges | None:
        """What to add to the logits from which these sequences draw; None where nobody asked.

        Args:
            slots: int64 [R], no slot twice; ``slots[r]`` draws from row r.
        """
        if not self._of_slot:
            return None
        if self._all is None:
            self._all = _joined(list(self._of_slot.values()))
        edits = self._all
        row_of_slot = np.full(self._num_slots, -1, np.int64)
        row_of_slot[slots] = np.arange(len(slots))
        biased = np.flatnonzero(row_of_slot[edits.bias_slots] >= 0)
        barred = np.flatnonzero(row_of_slot[edits.word_slots] >= 0)
        barred = barred[_is_begun(edits.word_starts[barred], table, edits.word_slots[barred])]
        return LogitChanges(
            rows=row_of_slot[np.concatenate((edits.bias_slots[biased], edits.word_slots[barred]))],
            token_ids=np.concatenate((edits.bias_ids[biased], edits.word_ends[barred])),
            values=np.concatenate((edits.biases[biased], np.full(len(barred), -np.inf, np.float32))),
        )


def _is_begun(starts: NDArray[np.int64], table: SequenceTable, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of the words, whose beginnings are given, the next token of their sequence could complete."""
    num_before = starts.shape[1]
    places = table.num_tokens[slots][:, None] + np.arange(-num_before, 0)
    said = np.where(
        places >= table.num_prompt[slots][:, None],
        table.token_ids[slots[:, None], np.maximum(places, 0)],
        _NOTHING,
    )
    begun: NDArray[np.bool_] = ((starts == _ANY) | (starts == said)).all(axis=1)
    return begun


def _split(words: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The beginnings and the last tokens of words, none of which is empty."""
    longest = max(map(len, words), default=1)
    starts = np.full((len(words), longest - 1), _ANY, np.int64)
    for row, word in enumerate(words):
        starts[row, longest - len(word) :] = word[:-1]
    return starts, np.array([word[-1] for word in words], np.int64)


def _joined(parts: Sequence[_Edits]) -> _Edits:
    width = max(part.word_starts.shape[1] for part in parts)
    padded = [
        np.pad(part.word_starts, ((0, 0), (width - part.word_starts.shape[1], 0)), constant_values=_ANY)
        for part in parts
    ]
    return _Edits(
        bias_slots=np.concatenate([part.bias_slots for part in parts]),
        bias_ids=np.concatenate([part.bias_ids for part in parts]),
        biases=np.concatenate([part.biases for part in parts]),
        word_slots=np.concatenate([part.word_slots for part in parts]),
        word_ends=np.concatenate([part.word_ends for part in parts]),
        word_starts=np.concatenate(padded),
    )
