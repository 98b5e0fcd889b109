"""Draws the next token of many sequences at once."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.api import TopLogprobs
from engines.torch.sampling.logit_edits import LogitChanges
from engines.torch.sampling.logprobs import top_logprobs
from engines.torch.sampling.noise import gumbel_noise, row_keys
from engines.torch.sampling.penalties import PenaltyCounts
from engines.torch.sampling.sampling_rows import SamplingRows
from engines.torch.sampling.truncation import truncate_

__all__ = ["Sampled", "Sampler"]

_MAX_NOISE_ELEMENTS = 1 << 19  # at once: bounds the scratch memory and keeps it in a core's cache


@dataclass(slots=True)
class Sampled:
    """The result of one draw.

    Attributes:
        token_ids: int64 [R].
        top_logprobs: by row, only for rows that want them.
    """

    token_ids: NDArray[np.int64]
    top_logprobs: dict[int, TopLogprobs] = field(default_factory=dict)


class Sampler:
    """Vectorized sampling for one model.

    In order: log-probabilities of the raw distribution are set aside; biases and bad words are applied; stop
    tokens are barred while ``min_tokens`` is not reached; penalties; temperature; min-p, top-k, top-p; Gumbel
    noise; argmax. Greedy rows skip everything between the penalties and the argmax. A row's result depends on
    its own logits and parameters alone, never on the rows beside it.

    Attributes:
        penalties: token counts of the rows with penalties; the caller adds and removes these rows.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.penalties = PenaltyCounts(vocab_size, device)
        self._device = device
        self._max_rows = max(1, _MAX_NOISE_ELEMENTS // vocab_size)

    def sample(
        self,
        logits: Tensor,
        rows: SamplingRows,
        positions: NDArray[np.int64],
        changes: LogitChanges | None = None,
    ) -> Sampled:
        """Draws a token for each row, and counts it if the row has penalties.

        Args:
            logits: float32 [R, vocab]; overwritten.
            rows: sampling parameters of the R rows.
            positions: int64 [R], index of the drawn token in prompt plus output.
            changes: changes to single logits of these rows.
        """
        asked = np.flatnonzero(rows.num_logprobs >= 0)
        raw = logits[torch.from_numpy(asked).to(self._device)].log_softmax(-1) if len(asked) else None
        if changes is not None:
            self._change_(logits, changes)
        self._bar_stops_(logits, rows, positions)
        self.penalties.apply_(logits, rows)
        drawn = np.flatnonzero(rows.temperature > 0)
        if len(drawn) < len(rows):
            token_ids = logits.argmax(-1).cpu().numpy()
        else:
            token_ids = np.empty(len(rows), np.int64)
        for start in range(0, len(drawn), self._max_rows):
            part = drawn[start : start + self._max_rows]
            token_ids[part] = self._draw(logits, part, rows.take(part), positions[part])
        self.penalties.count(rows.penalty_row, token_ids)
        if raw is None:
            return Sampled(token_ids)
        tops = top_logprobs(raw, token_ids[asked], rows.num_logprobs[asked])
        return Sampled(token_ids, dict(zip(asked.tolist(), tops, strict=True)))

    def _change_(self, logits: Tensor, changes: LogitChanges) -> None:
        index = (
            torch.from_numpy(changes.rows).to(self._device),
            torch.from_numpy(changes.token_ids).to(self._device),
        )
        logits.index_put_(index, torch.from_numpy(changes.values).to(self._device), accumulate=True)

    def _bar_stops_(self, logits: Tensor, rows: SamplingRows, positions: NDArray[np.int64]) -> None:
        barred, column = np.nonzero((positions < rows.min_length)[:, None] & (rows.stop_ids >= 0))
        if len(barred):
            stops = rows.stop_ids[barred, column]
            in_vocab = stops < logits.shape[1]
            row_index = torch.from_numpy(barred[in_vocab]).to(self._device)
            logits[row_index, torch.from_numpy(stops[in_vocab]).to(self._device)] = -torch.inf

    def _draw(
        self, logits: Tensor, part: NDArray[np.int64], rows: SamplingRows, positions: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Draws tokens for the rows ``part`` of the logits; ``rows`` and ``positions`` are those of the same
        rows."""
        temperature = torch.from_numpy(rows.temperature).to(self._device).unsqueeze(1)
        scaled = logits[torch.from_numpy(part).to(self._device)].div_(temperature)
        truncate_(scaled, rows)
        scaled += gumbel_noise(row_keys(rows.noise_key, positions), scaled.shape[1], self._device)
        token_ids: NDArray[np.int64] = scaled.argmax(-1).cpu().numpy()
        return token_ids
