"""Books of the running sequences: all that the runner keeps for each beside its row of the table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engines.api import FirstToken, TopLogprobs
from engines.torch.sampling.penalties import PenaltyCounts, has_penalty
from engines.torch.sampling.sampling_rows import SamplingRows
from engines.torch.scheduling.waiting import PendingSequence

__all__ = ["FirstTokens", "PenaltyRows", "SequenceBook"]


class SequenceBook(Protocol):
    """Something that is kept for running sequences, by slot.

    A sequence is begun in every book when it gets its slot, and ended in every book when it leaves, preempted or
    for good. What has to survive a preemption is in the ``PendingSequence``.
    """

    def begin(self, slot: int, sequence: PendingSequence) -> None:
        """Keeps what is wanted of a sequence; nothing if the sequence does not concern this book."""
        ...

    def end(self, slot: int) -> None:
        """Forgets the sequence of a slot, if anything of it is kept."""
        ...

    def slots(self) -> set[int]:
        """Slots for which something is kept."""
        ...


class FirstTokens:
    """News of sequences that have no token yet since they were submitted."""

    def __init__(self) -> None:
        self._untold: dict[int, PendingSequence] = {}

    def begin(self, slot: int, sequence: PendingSequence) -> None:
        if sequence.first is not None:
            self._untold[slot] = sequence

    def end(self, slot: int) -> None:
        self._untold.pop(slot, None)

    def slots(self) -> set[int]:
        return set(self._untold)

    def add_prompt_logprobs(self, slots: NDArray[np.int64], scored: Sequence[TopLogprobs]) -> None:
        """Keeps what was found about the next tokens of prompts: ``scored[i]`` is of the one in ``slots[i]``."""
        for slot, top in zip(slots.tolist(), scored, strict=True):
            first = self._untold[slot].first
            assert first is not None
            assert isinstance(first.prompt_logprobs, list), "only who asked is scored"
            first.prompt_logprobs.append(top)

    def take(self, slots: NDArray[np.int64]) -> dict[int, FirstToken]:
        """News by sequence id, of those among these sequences that have their first token now; told with this."""
        if not self._untold:
            return {}
        told = {}
        for slot in slots.tolist():
            sequence = self._untold.pop(slot, None)
            if sequence is not None and sequence.first is not None:
                told[sequence.request.sequence_id] = sequence.first
                sequence.first = None
        return told


class PenaltyRows:
    """Rows of token counts of the sequences whose sampling is penalized.

    Args:
        counts: holds the rows.
        sampling: of the table; says which row a slot has.
    """

    def __init__(self, counts: PenaltyCounts, sampling: SamplingRows) -> None:
        self._counts = counts
        self._sampling = sampling

    def begin(self, slot: int, sequence: PendingSequence) -> None:
        if has_penalty(sequence.request.sampling):
            prompt, output = np.split(sequence.token_ids, [sequence.num_prompt])
            self._sampling.penalty_row[slot] = self._counts.add(prompt, output)

    def end(self, slot: int) -> None:
        row = int(self._sampling.penalty_row[slot])
        if row >= 0:
            self._sampling.penalty_row[slot] = -1
            self._counts.remove(row)

    def slots(self) -> set[int]:
        slots = np.flatnonzero(self._sampling.penalty_row >= 0)
        if len(slots) != self._counts.num_rows_in_use:
            raise AssertionError(f"{self._counts.num_rows_in_use} rows of counts for {len(slots)} sequences")
        return set(slots.tolist())
