"""Changes that callers ask for in single logits: biases and bad words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engines.api import SamplingParams, SequenceRequest

__all__ = ["LogitChanges", "LogitEdits"]

_ANY = -1  # in the beginning of a word: matches any token
_NOTHING = -2  # stands for tokens before the output: matches no token of a word


class _Sequence(Protocol):
    @property
    def request(self) -> SequenceRequest: ...


def _has_edits(params: SamplingParams) -> bool:
    """Whether a sequence with these parameters changes logits of its own."""
    return bool(params.logit_bias or params.bad_words_ids)


@dataclass(slots=True)
class LogitChanges:
    """Numbers to add to single logits of one step; -inf bars a token.

    Attributes:
        rows: int64 [E] rows of the step's logits.
        token_ids: int64 [E].
        values: float32 [E]; if a logit has several, all are added.
    """

    rows: NDArray[np.int64]
    token_ids: NDArray[np.int64]
    values: NDArray[np.float32]


@dataclass(slots=True)
class _Edits:
    """The edits of one sequence, or of many one after the other: B biases, and W words with at most L tokens
    before the last.

    Attributes:
        bias_slots: int64 [B] slot of each bias's sequence.
        bias_ids: int64 [B] token of each bias.
        biases: float32 [B].
        word_slots: int64 [W] slot of each word's sequence.
        word_ends: int64 [W] last token of each word.
        word_starts: int64 [W, L] the tokens before it, the last one rightmost, padded with ``_ANY``.
    """

    bias_slots: NDArray[np.int64]
    bias_ids: NDArray[np.int64]
    biases: NDArray[np.float32]
    word_slots: NDArray[np.int64]
    word_ends: NDArray[np.int64]
    word_starts: NDArray[np.int64]


class LogitEdits:
    """Biases and bad words of the running sequences that have any, in flat arrays, so that a step finds the
    changes for all of its rows at once.

    A bad word's last token is barred if the tokens before it are the end of the output. As in vLLM, a word
    that began in the prompt may be completed: the output did not say it.

    Args:
        num_slots: slots of the table that holds the sequences.
    """

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._of_slot: dict[int, _Edits] = {}
        self._all: _Edits | None = None  # edits of all slots; None if they have to be joined anew

    def slots(self) -> set[int]:
        """Slots of the sequences that have edits."""
        return set(self._of_slot)

    def begin(self, slot: int, sequence: _Sequence) -> None:
        """Keeps the edits of the sequence in ``slot``, if it has any."""
        params = sequence.request.sampling
        if not _has_edits(params):
            return
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

    def end(self, slot: int) -> None:
        """Forgets the edits of the sequence in ``slot``, if it has any."""
        if self._of_slot.pop(slot, None) is not None:
            self._all = None

    def changes(
        self,
        slots: NDArray[np.int64],
        token_ids: NDArray[np.int32],
        num_tokens: NDArray[np.int64],
        num_prompt: NDArray[np.int64],
    ) -> LogitChanges | None:
        """The changes to the logits from which these sequences draw; None if no sequence has edits.

        Args:
            slots: int64 [R], no slot twice; ``slots[r]`` draws from row r.
            token_ids: int32 [C, L], known tokens of every slot.
            num_tokens: int64 [C], how many are known.
            num_prompt: int64 [C], how many of them are the prompt's.
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
        word_slots = edits.word_slots[barred]
        places = num_tokens[word_slots][:, None] + np.arange(-edits.word_starts.shape[1], 0)
        last_tokens = np.where(
            places >= num_prompt[word_slots][:, None],
            token_ids[word_slots[:, None], np.maximum(places, 0)],
            _NOTHING,
        )
        starts = edits.word_starts[barred]
        barred = barred[((starts == _ANY) | (starts == last_tokens)).all(axis=1)]
        return LogitChanges(
            rows=row_of_slot[np.concatenate((edits.bias_slots[biased], edits.word_slots[barred]))],
            token_ids=np.concatenate((edits.bias_ids[biased], edits.word_ends[barred])),
            values=np.concatenate((edits.biases[biased], np.full(len(barred), -np.inf, np.float32))),
        )


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
