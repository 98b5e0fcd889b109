"""Top-k, top-p and min-p over many rows at once."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.torch.sampling.sampling_rows import SamplingRows

__all__ = ["truncate_"]

_NUM_CANDIDATES = 256  # the nucleus of nearly every row lies within these; other rows are sorted whole
_NEVER = -torch.inf


def truncate_(scaled: Tensor, rows: SamplingRows) -> None:
    """Sets the logits that the rows' min-p, top-k and top-p leave out to -inf, in place and in that order
    (vLLM's).

    Each limit looks at the distribution that the one before it left. Tokens whose logit equals the last one
    kept are kept as well, as transformers does: which of two equals goes first would be chance.

    Args:
        scaled: float32 [R, vocab] logits over temperature.
    """
    device = scaled.device
    by_share = np.flatnonzero(rows.min_p > 0)
    if len(by_share):
        index = torch.from_numpy(by_share).to(device)
        part = scaled[index]
        log_share = torch.from_numpy(np.log(rows.min_p[by_share])).to(device).unsqueeze(1)
        scaled[index] = part.masked_fill_(part < part.amax(-1, keepdim=True) + log_share, _NEVER)

    vocab_size = scaled.shape[1]
    top_k = np.where((rows.top_k > 0) & (rows.top_k < vocab_size), rows.top_k, vocab_size)
    by_rank = np.flatnonzero((top_k < vocab_size) | (rows.top_p < 1))
    if len(by_rank):
        index = torch.from_numpy(by_rank).to(device)
        part = scaled[index]
        limit = _lowest_kept(part, top_k[by_rank], rows.top_p[by_rank])
        scaled[index] = part.masked_fill_(part < limit, _NEVER)


def _lowest_kept(scaled: Tensor, top_k: NDArray[np.int64], top_p: NDArray[np.float32]) -> Tensor:
    """The lowest logit of each row that is kept, [R, 1]."""
    vocab_size = scaled.shape[1]
    limited = top_k < vocab_size
    width = min(vocab_size, int(top_k[limited].max(initial=_NUM_CANDIDATES)))
    limit, complete = _lowest_kept_of_best(scaled, top_k, top_p, width)
    rest = np.flatnonzero(~complete & ~limited)
    if len(rest) and width < vocab_size:
        index = torch.from_numpy(rest).to(scaled.device)
        limit[index], _ = _lowest_kept_of_best(scaled[index], top_k[rest], top_p[rest], vocab_size)
    return limit


def _lowest_kept_of_best(
    scaled: Tensor, top_k: NDArray[np.int64], top_p: NDArray[np.float32], width: int
) -> tuple[Tensor, NDArray[np.bool_]]:
    """``_lowest_kept`` among the ``width`` likeliest tokens, and whether each row's nucleus ends within
    them."""
    device = scaled.device
    ranks_allowed = torch.from_numpy(top_k).to(device).unsqueeze(1)
    mass_wanted = torch.from_numpy(np.where(top_p < 1, top_p, np.inf)).to(device).unsqueeze(1)
    best = scaled.topk(width, dim=-1).values
    allowed = torch.arange(width, device=device) < ranks_allowed
    log_mass = best.masked_fill(~allowed, _NEVER).logsumexp(-1, keepdim=True)
    if width < scaled.shape[1] and bool((top_k >= scaled.shape[1]).any()):
        log_mass = torch.where(ranks_allowed < scaled.shape[1], log_mass, scaled.logsumexp(-1, keepdim=True))
    share = (best - log_mass).exp_().masked_fill_(~allowed, 0.0)
    share_before = share.cumsum(-1) - share
    num_kept = (allowed & (share_before < mass_wanted)).sum(-1, keepdim=True).clamp_(min=1)
    complete = (num_kept < width).squeeze(1).cpu().numpy()
    return best.gather(-1, num_kept - 1), complete
