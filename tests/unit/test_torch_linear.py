"""The product is exact to its dtype whichever way it is computed."""

from __future__ import annotations

import pytest
import torch

from engines.torch.linear import project


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("num_rows", [0, 1, 2, 17, 128, 129])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_matches_float64(dtype: torch.dtype, num_rows: int, has_bias: bool) -> None:
    generator = torch.Generator().manual_seed(num_rows)
    x = torch.randn(num_rows, 96, generator=generator).to(dtype)
    weight = torch.randn(70, 96, generator=generator).to(dtype)
    bias = torch.randn(70, generator=generator).to(dtype) if has_bias else None
    exact = x.double() @ weight.double().t() + (0 if bias is None else bias.double())
    result = project(x, weight, bias)
    assert result.shape == (num_rows, 70)
    assert result.is_contiguous()
    # Sums are kept in float32 and rounded once, or twice where a bias is added after.
    rtol = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(result.double(), exact, rtol=rtol, atol=max(2e-5, 8 * rtol))
