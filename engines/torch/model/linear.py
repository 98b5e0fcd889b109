"""The matrix products of a model, each by the call that is quickest on the device at hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["project", "project_to_logits"]

_MAX_SWAPPED_ROWS = 128  # above this the transposed result costs more than the order saves
_NUM_EXACT = 8  # logits of each row that are computed in float32; more or fewer take the same time to find


def project(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` for x [T, in] and weight [out, in], contiguous.

    For a few bfloat16 rows on a CPU the product is computed as weight @ x.T: oneDNN then streams the weights
    as they lie, one and a half times as fast (measured with AMX). The result is then a transposed view, which
    element-wise operations read as it is. Float32 gains nothing by it.
    """
    num_rows = x.shape[0]
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16 or num_rows > _MAX_SWAPPED_ROWS:
        return F.linear(x, weight, bias)
    product = torch.mv(weight, x[0])[None] if num_rows == 1 else torch.mm(weight, x.t()).t()
    return product if bias is None else product.add_(bias)


def project_to_logits(x: Tensor, weight: Tensor) -> Tensor:
    """``project`` to float32 [T, out], contiguous; the highest logits of each row are as if never rounded to
    bfloat16.

    Two logits of 20 that bfloat16 can tell apart differ by 1/8, and the best two tokens are often closer.
    CUDA can return its float32 sums; a CPU cannot, so there the highest logits of each row are computed again
    in float32.
    """
    if weight.dtype == torch.float32:
        return F.linear(x, weight)
    if weight.device.type == "cuda":
        return torch.mm(x, weight.t(), out_dtype=torch.float32)
    logits = project(x, weight).to(torch.float32, memory_format=torch.contiguous_format)
    top = logits.topk(min(_NUM_EXACT, logits.shape[-1]), sorted=False).indices
    return logits.scatter_(-1, top, torch.linalg.vecdot(weight[top].float(), x[:, None].float()))
