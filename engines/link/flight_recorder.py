"""The flight recorder: which sequences a worker's running step has, for whoever reads it after a death.

It lies in memory that the worker and the server share (``engines.link.worker_memory``), so it outlives the
worker. The worker writes the sequence ids before a step touches any of them and clears the record when the step
is done. Ids are written first and their number last, so a death between the two leaves a record of no step,
never a mixture of two.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["FlightRecorder"]

_MAX_SEQUENCES = 8191


class FlightRecorder:
    """The ids of the sequences in the running step.

    A step of more than 8191 sequences is recorded with the first 8191 of them.

    Args:
        memory: ``NUM_BYTES`` bytes, zero at first, aligned to 8; word 0 is the number of ids, which follow it.
    """

    NUM_BYTES = 8 * (1 + _MAX_SEQUENCES)

    def __init__(self, memory: memoryview) -> None:
        words = np.frombuffer(memory, np.uint64, 1 + _MAX_SEQUENCES)
        self._num_recorded = words[:1]
        self._sequence_ids = words[1:]

    def begin_step(self, sequence_ids: NDArray[np.uint64] | Sequence[int]) -> None:
        """Records the sequences of the step that begins. The record must be clear."""
        num_sequences = min(len(sequence_ids), _MAX_SEQUENCES)
        self._sequence_ids[:num_sequences] = sequence_ids[:num_sequences]
        self._num_recorded[0] = num_sequences

    def end_step(self) -> None:
        """Clears the record."""
        self._num_recorded[0] = 0

    def sequence_ids(self) -> list[int]:
        """Ids of the sequences of the running step; empty if none runs."""
        return list(map(int, self._sequence_ids[: int(self._num_recorded[0])]))
