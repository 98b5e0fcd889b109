"""Rotary position embedding (Su et al., RoFormer, 2021), in the half-split layout of Hugging Face."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from engines.checkpoint.model_config import RopeConfig

__all__ = ["Rotation", "inverse_frequencies"]


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """Radians per position of each pair of a head: float32 [head_dim / 2], on the CPU.

    Computed in float32 throughout, as the reference does: at high positions a different rounding here gives a
    different angle.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequencies = 1.0 / (rope.theta**exponents)
    if rope.kind == "default":
        return frequencies
    if rope.kind == "linear":
        return frequencies / rope.factor
    wavelengths = 2 * math.pi / frequencies
    keep = (rope.original_max_tokens / wavelengths - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    keep = keep.clamp(0, 1)
    return (1 - keep) * frequencies / rope.factor + keep * frequencies


class Rotation:
    """The rotation of one step's tokens, computed once and applied in every layer.

    Angles are computed from the positions at each step: a table for a long context would take more memory
    than it is worth in time.

    Args:
        positions: int64 [T].
        frequencies: float32 [head_dim / 2] from ``inverse_frequencies``, on the device of the positions.
        dtype: dtype of the queries and keys.
    """

    def __init__(self, positions: Tensor, frequencies: Tensor, dtype: torch.dtype) -> None:
        angles = (positions.to(torch.float32)[:, None] * frequencies)[:, None, :]
        cos, sin = angles.cos(), angles.sin()
        self._half = frequencies.shape[0]
        self._cos = torch.cat((cos, cos), dim=-1).to(dtype)
        self._sin = torch.cat((-sin, sin), dim=-1).to(dtype)

    def apply(self, heads: Tensor) -> Tensor:
        """Rotates ``heads`` [T, num_heads, head_dim] by each token's position."""
        return torch.addcmul(heads * self._cos, heads.roll(self._half, dims=-1), self._sin)
