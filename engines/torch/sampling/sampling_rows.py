"""Sampling parameters of many sequences as parallel columns, so that a step reads them with one index."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.api import SamplingParams
from engines.torch.sampling.noise import sequence_key

__all__ = ["SamplingRows"]

_GREEDY_BELOW = 1e-5  # dividing logits by less than this only overflows
_SEED_MASK = (1 << 64) - 1


@dataclass(slots=True)
class SamplingRows:
    """Sampling parameters, a row for each sequence; as in ``SamplingParams`` unless said otherwise.

    Attributes:
        temperature: float32 [N]; exactly 0 if the row is greedy.
        top_p: float32 [N].
        min_p: float32 [N].
        repetition: float32 [N], the repetition penalty.
        presence: float32 [N], the presence penalty.
        frequency: float32 [N], the frequency penalty.
        top_k: int64 [N].
        num_logprobs: int64 [N]; -1 if none are wanted.
        noise_key: uint64 [N] keys from ``noise.sequence_key``.
        min_length: int64 [N] prompt plus output tokens before which no stop token may be drawn.
        penalty_row: int64 [N] row of ``PenaltyCounts``, -1 if the sequence has no penalty.
        stop_ids: int64 [N, K] tokens that end the sequence, padded with -1.
    """

    temperature: NDArray[np.float32]
    top_p: NDArray[np.float32]
    min_p: NDArray[np.float32]
    repetition: NDArray[np.float32]
    presence: NDArray[np.float32]
    frequency: NDArray[np.float32]
    top_k: NDArray[np.int64]
    num_logprobs: NDArray[np.int64]
    noise_key: NDArray[np.uint64]
    min_length: NDArray[np.int64]
    penalty_row: NDArray[np.int64]
    stop_ids: NDArray[np.int64]

    @classmethod
    def empty(cls, num_rows: int) -> SamplingRows:
        """``num_rows`` greedy rows without any stop token."""

        def floats() -> NDArray[np.float32]:
            return np.zeros(num_rows, np.float32)

        def integers() -> NDArray[np.int64]:
            return np.full(num_rows, -1, np.int64)

        return cls(
            floats(),
            floats(),
            floats(),
            floats(),
            floats(),
            floats(),
            integers(),
            integers(),
            np.zeros(num_rows, np.uint64),
            integers(),
            integers(),
            np.full((num_rows, 1), -1, np.int64),
        )

    def set(self, row: int, params: SamplingParams, *, num_prompt: int, eos_ids: tuple[int, ...]) -> None:
        """Writes one sequence's parameters into ``row``, which has no penalty yet.

        Args:
            num_prompt: tokens of the sequence's prompt.
            eos_ids: the model's own end-of-sequence ids; left out if the sequence ignores them.
        """
        self.temperature[row] = 0.0 if params.temperature < _GREEDY_BELOW else params.temperature
        self.top_p[row] = params.top_p
        self.min_p[row] = params.min_p
        self.repetition[row] = params.repetition_penalty
        self.presence[row] = params.presence_penalty
        self.frequency[row] = params.frequency_penalty
        self.top_k[row] = params.top_k
        self.num_logprobs[row] = -1 if params.logprobs is None else params.logprobs
        self.noise_key[row] = sequence_key(params.seed & _SEED_MASK, params.choice)
        self.min_length[row] = num_prompt + params.min_tokens
        self.penalty_row[row] = -1
        self._set_stop_ids(row, (*params.stop_token_ids, *(() if params.ignore_eos else eos_ids)))

    def _set_stop_ids(self, row: int, ids: tuple[int, ...]) -> None:
        missing = len(ids) - self.stop_ids.shape[1]
        if missing > 0:
            self.stop_ids = np.pad(self.stop_ids, ((0, 0), (0, missing)), constant_values=-1)
        self.stop_ids[row] = -1
        self.stop_ids[row, : len(ids)] = ids

    def take(self, rows: NDArray[np.int64]) -> SamplingRows:
        """A copy of these rows, in this order."""
        return SamplingRows(
            self.temperature[rows],
            self.top_p[rows],
            self.min_p[rows],
            self.repetition[rows],
            self.presence[rows],
            self.frequency[rows],
            self.top_k[rows],
            self.num_logprobs[rows],
            self.noise_key[rows],
            self.min_length[rows],
            self.penalty_row[rows],
            self.stop_ids[rows],
        )

    def __len__(self) -> int:
        return len(self.temperature)
