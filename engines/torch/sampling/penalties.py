"""Token counts of the sequences whose sampling is penalized."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.api import SamplingParams
from engines.torch.sampling.sampling_rows import SamplingRows

__all__ = ["PenaltyCounts", "has_penalty"]

_IN_PROMPT = 1 << 30  # set if the prompt holds the token; the bits below count the token in the output


def has_penalty(params: SamplingParams) -> bool:
    """Whether a sequence with these parameters needs a row of counts."""
    return (
        params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
    )


class PenaltyCounts:
    """One int32 row of the vocabulary for each sequence with penalties, kept from its admission to its end.

    A step adds one token to each row that drew one; nothing is counted again. The table grows by doubling and
    is empty until the first such sequence comes.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._table = torch.zeros((0, vocab_size), dtype=torch.int32, device=device)
        self._free_rows: list[int] = []

    @property
    def num_rows_in_use(self) -> int:
        return len(self._table) - len(self._free_rows)

    def add(self, prompt_ids: NDArray[np.int32], output_ids: NDArray[np.int32]) -> int:
        """Counts these tokens in a new row; returns the row."""
        if not self._free_rows:
            self._grow()
        row = self._free_rows.pop()
        counts = np.bincount(output_ids, minlength=self._vocab_size).astype(np.int32)
        counts[prompt_ids] |= _IN_PROMPT
        self._table[row] = torch.from_numpy(counts).to(self._device)
        return row

    def _grow(self) -> None:
        num_rows = len(self._table)
        more = torch.zeros((max(num_rows, 4), self._vocab_size), dtype=torch.int32, device=self._device)
        self._table = torch.cat((self._table, more))
        self._free_rows.extend(range(len(self._table) - 1, num_rows - 1, -1))

    def remove(self, row: int) -> None:
        """Gives a row back."""
        self._free_rows.append(row)

    def trim(self) -> None:
        """Gives the table's memory back, if no row is in use."""
        if not self.num_rows_in_use:
            self._table, self._free_rows = self._table[:0].clone(), []

    def count(self, rows: NDArray[np.int64], token_ids: NDArray[np.int64]) -> None:
        """Counts one drawn token in each of these rows; -1 means no row.

        Args:
            rows: [R], no row twice.
            token_ids: [R].
        """
        on = rows >= 0
        if on.any():
            index = (
                torch.from_numpy(rows[on]).to(self._device),
                torch.from_numpy(token_ids[on]).to(self._device),
            )
            self._table[index] += 1

    def apply_(self, logits: Tensor, rows: SamplingRows) -> None:
        """Penalizes, in place, those rows of the logits [R, vocab] that have counts."""
        on = np.flatnonzero(rows.penalty_row >= 0)
        if not len(on):
            return
        index = torch.from_numpy(on).to(self._device)
        counts = self._table[torch.from_numpy(rows.penalty_row[on]).to(self._device)]
        output_counts = counts & (_IN_PROMPT - 1)

        def column(values: NDArray[np.float32]) -> Tensor:
            return torch.from_numpy(values[on]).to(self._device).unsqueeze(1)

        part = logits[index]
        factor = torch.where(counts != 0, column(rows.repetition), 1.0)
        part = torch.where(part > 0, part / factor, part * factor)
        part -= output_counts * column(rows.frequency)
        part -= (output_counts > 0) * column(rows.presence)
        logits[index] = part
