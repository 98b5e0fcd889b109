"""The product is exact to its dtype whichever way it is computed."""

from __future__ import annotations

import pytest
import torch

from engines.torch.model.linear import project, project_to_logits


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("num_rows", [0, 1, 2, 17, 64, 65, 128, 129])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_matches_float64(dtype: torch.dtype, num_rows: int, has_bias: bool) -> None:
    generator = torch.Generator().manual_seed(num_rows)
    x = torch.randn(num_rows, 96, generator=generator).to(dtype)
    weight = torch.randn(70, 96, generator=generator).to(dtype)
    bias = torch.randn(70, generator=generator).to(dtype) if has_bias else None
    exact = x.double() @ weight.double().t() + (0 if bias is None else bias.double())
    result = project(x, weight, bias)
    assert result.shape == (num_rows, 70)
    # Sums are kept in float32 and rounded once, or twice where a bias is added after.
    rtol = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(result.double(), exact, rtol=rtol, atol=max(2e-5, 8 * rtol))


@pytest.mark.parametrize("num_rows", [0, 1, 5, 200])
def test_bfloat16_logits_keep_their_order_at_the_top(num_rows: int) -> None:
    generator = torch.Generator().manual_seed(num_rows)
    weight = torch.randn(4096, 64, generator=generator).bfloat16()
    x = torch.randn(num_rows, 64, generator=generator).bfloat16()
    exact = x.double() @ weight.double().t()
    logits = project_to_logits(x, weight)
    assert logits.dtype == torch.float32
    assert logits.is_contiguous()
    assert torch.equal(logits.argmax(-1), exact.argmax(-1))
    torch.testing.assert_close(logits.amax(-1).double(), exact.amax(-1), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(logits.double(), exact, rtol=2**-7, atol=0.05)


def test_two_logits_that_bfloat16_cannot_tell_apart() -> None:
    """20 and 20.05 are one number in bfloat16, and the first of equals would win."""
    weight = torch.zeros(3, 4).bfloat16()
    weight[1, 0], weight[2, 0], weight[2, 1] = 20, 20, 0.05
    x = torch.ones(1, 4).bfloat16()
    rounded = project(x, weight)[0]
    assert rounded[1] == rounded[2]
    assert project_to_logits(x, weight).argmax() == 2


@pytest.mark.parametrize("num_rows", [0, 1, 3, 65])
def test_float32_logits_are_exact_and_contiguous(num_rows: int) -> None:
    generator = torch.Generator().manual_seed(num_rows)
    x, weight = torch.randn(num_rows, 8, generator=generator), torch.randn(16, 8, generator=generator)
    logits = project_to_logits(x, weight)
    assert logits.is_contiguous()
    torch.testing.assert_close(logits.double(), x.double() @ weight.double().t(), rtol=1e-5, atol=1e-5)
