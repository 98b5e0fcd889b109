"""Changes that callers ask for in single logits: biases and bad words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engines.api import SamplingParams, SequenceRequest

__all__ = ["LogitChanges", "LogitEdits"]


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
class _Fixed:
    """Changes that hold at every step, of one sequence, or of many one after the other: B of them.

    Attributes:
        slots: int64 [B] slot of each one's sequence.
        token_ids: int64 [B].
        values: float32 [B].
    """

    slots: NDArray[np.int64]
    token_ids: NDArray[np.int64]
    values: NDArray[np.float32]


class _Phrases:
    """The bad words of one sequence that have several tokens, by the token before the last: a step looks only at
    those whose turn it may be.

    Args:
        words: the words, each with at least two tokens.
    """

    def __init__(self, words: Sequence[Sequence[int]]) -> None:
        self._longest = max(map(len, words)) - 1
        self._by_last_but_one: dict[int, list[tuple[bytes, int]]] = {}
        for word in words:
            start = np.array(word[:-1], np.int32).tobytes()
            self._by_last_but_one.setdefault(word[-2], []).append((start, word[-1]))

    def barred(self, output: NDArray[np.int32]) -> list[int]:
        """The last tokens of the words that this output ends with, but for that token."""
        started = self._by_last_but_one.get(int(output[-1])) if len(output) else None
        if started is None:
            return []
        said = output[-self._longest :].tobytes()
        return [end for start, end in started if said.endswith(start)]


class LogitEdits:
    """Biases and bad words of the running sequences that have any.

    A bad word's last token is barred if the tokens before it are the end of the output. As in vLLM, a word
    that began in the prompt may be completed: the output did not say it.

    Args:
        num_slots: slots of the table that holds the sequences.
    """

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._fixed: dict[int, _Fixed] = {}
        self._phrases: dict[int, _Phrases] = {}
        self._all_fixed: _Fixed | None = None  # those of all slots; None if they have to be joined anew

    def slots(self) -> set[int]:
        """Slots of the sequences that have edits."""
        return set(self._fixed)

    def begin(self, slot: int, sequence: _Sequence) -> None:
        """Keeps the edits of the sequence in ``slot``, if it has any."""
        params = sequence.request.sampling
        if not _has_edits(params):
            return
        barred = [word[0] for word in params.bad_words_ids if len(word) == 1]
        token_ids = [token_id for token_id, _ in params.logit_bias] + barred
        biases = [bias for _, bias in params.logit_bias]
        self._fixed[slot] = _Fixed(
            slots=np.full(len(token_ids), slot, np.int64),
            token_ids=np.array(token_ids, np.int64),
            values=np.array([*biases, *[-np.inf] * len(barred)], np.float32),
        )
        phrases = [word for word in params.bad_words_ids if len(word) > 1]
        if phrases:
            self._phrases[slot] = _Phrases(phrases)
        self._all_fixed = None

    def end(self, slot: int) -> None:
        """Forgets the edits of the sequence in ``slot``, if it has any."""
        if self._fixed.pop(slot, None) is not None:
            self._phrases.pop(slot, None)
            self._all_fixed = None

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
        if not self._fixed:
            return None
        if self._all_fixed is None:
            self._all_fixed = _joined(list(self._fixed.values()))
        fixed = self._all_fixed
        row_of_slot = np.full(self._num_slots, -1, np.int64)
        row_of_slot[slots] = np.arange(len(slots))
        present = np.flatnonzero(row_of_slot[fixed.slots] >= 0)
        rows: list[int] = []
        barred: list[int] = []
        for row, slot in enumerate(slots.tolist()):
            phrases = self._phrases.get(slot)
            if phrases is not None:
                barred += phrases.barred(token_ids[slot, num_prompt[slot] : num_tokens[slot]])
                rows += [row] * (len(barred) - len(rows))
        return LogitChanges(
            rows=np.concatenate((row_of_slot[fixed.slots[present]], np.array(rows, np.int64))),
            token_ids=np.concatenate((fixed.token_ids[present], np.array(barred, np.int64))),
            values=np.concatenate((fixed.values[present], np.full(len(barred), -np.inf, np.float32))),
        )


def _joined(parts: Sequence[_Fixed]) -> _Fixed:
    return _Fixed(
        slots=np.concatenate([part.slots for part in parts]),
        token_ids=np.concatenate([part.token_ids for part in parts]),
        values=np.concatenate([part.values for part in parts]),
    )
