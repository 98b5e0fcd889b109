"""Log-probabilities as they are reported: of a token that is there, and of the likeliest ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.api import TopLogprobs

__all__ = ["score_tokens", "top_logprobs"]

_MAX_LOGITS = 1 << 23  # logits made at once for prompts: 32 MiB, whatever the chunk and the vocabulary


def top_logprobs(
    logprobs: Tensor, token_ids: NDArray[np.int64], num_likeliest: NDArray[np.int64]
) -> list[TopLogprobs]:
    """The log-probabilities of each row, as they are reported.

    Args:
        logprobs: float32 [R, vocab].
        token_ids: int64 [R], the token that is there.
        num_likeliest: int64 [R], number of likeliest tokens to report beside it; a larger one than the
            vocabulary means all.
    """
    there = torch.from_numpy(token_ids).to(logprobs.device).unsqueeze(1)
    of_token = logprobs.gather(-1, there).squeeze(1).tolist()
    best = logprobs.topk(min(int(num_likeliest.max()), logprobs.shape[1]), dim=-1)
    columns = zip(of_token, best.indices.tolist(), best.values.tolist(), num_likeliest.tolist(), strict=True)
    return [TopLogprobs(one, tuple(ids[:k]), tuple(values[:k])) for one, ids, values, k in columns]


def score_tokens(
    states: Tensor,
    to_logits: Callable[[Tensor], Tensor],
    vocab_size: int,
    token_ids: NDArray[np.int64],
    num_likeliest: NDArray[np.int64],
) -> list[TopLogprobs]:
    """The log-probabilities of known tokens, computed from a slice of the logits at a time.

    Args:
        states: [R, hidden_size], the state of the token before each.
        to_logits: turns states into logits, float32 [.., vocab].
        token_ids: int64 [R].
        num_likeliest: int64 [R], as for ``top_logprobs``.
    """
    num_at_once = max(1, _MAX_LOGITS // vocab_size)
    scored: list[TopLogprobs] = []
    for start in range(0, len(token_ids), num_at_once):
        part = slice(start, start + num_at_once)
        logprobs = to_logits(states[part]).log_softmax(-1)
        scored += top_logprobs(logprobs, token_ids[part], num_likeliest[part])
    return scored
