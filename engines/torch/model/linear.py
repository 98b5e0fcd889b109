"""The matrix products of a model, each by the call that is quickest on the device at hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["project", "project_to_logits"]

# Above this the transposed result costs more than the order saves.
_MAX_SWAPPED_ROWS = {torch.bfloat16: 128, torch.float32: 64}
_NUM_EXACT = 8  # logits of each row that are computed in float32; more or fewer take the same time to find


def project(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` for x [T, in] and weight [out, in], contiguous.

    For a few rows on a CPU the product is computed as weight @ x.T: oneDNN and MKL then stream the weights as they
    lie and share them between the cores, 1.2 to 2 times as fast for 2 to 64 rows (measured with AMX in bfloat16, with
    AVX2 in float32). The result is then a transposed view, which element-wise operations read as it is.
    """
    num_rows = x.shape[0]
    if weight.device.type != "cpu" or num_rows > _MAX_SWAPPED_ROWS.get(weight.dtype, 0):
        return F.linear(x, weight, bias)
    if num_rows == 1 and weight.dtype == torch.bfloat16:
        product = torch.mv(weight, x[0])[None]
    else:
        product = torch.mm(weight, x.t()).t()
    return product if bias is None else product.add_(bias)


def project_to_logits(x: Tensor, weight: Tensor) -> Tensor:
    """``project`` to float32 [T, out], contiguous; the highest logits of each row are as if never rounded to
    bfloat16.

    Two logits of 20 that bfloat16 can tell apart differ by 1/8, and the best two tokens are often closer.
    CUDA can return its float32 sums; a CPU cannot, so there the highest logits of each row are computed again
    in float32.
    """
    if weight.dtype == torch.float32:
        return project(x, weight).contiguous()
    if weight.device.type == "cuda":
        return torch.mm(x, weight.t(), out_dtype=torch.float32)
    logits = project(x, weight).to(torch.float32, memory_format=torch.contiguous_format)
    top = logits.topk(min(_NUM_EXACT, logits.shape[-1]), sorted=False).indices
    return logits.scatter_(-1, top, torch.linalg.vecdot(weight[top].float(), x[:, None].float()))
