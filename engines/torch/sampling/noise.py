"""Sampling noise as a function of (seed, choice, position, token), never generator state.

A token sampled again after a worker's death, in another batch or on another device must be the same
token, so the noise of a logit depends on these four alone: it is counter-based
(Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011).

The hash has two stages::

    sequence key   k = mix64(mix64(seed + PHI64) + choice)          once for a sequence
    row key        r = mix64(k + position * PHI64)                 once for a sampled token
    word           w = mix32(token * PHI32 + low(r); high(r))       once for a logit

``mix64`` is the finalizer of SplitMix64 (Steele et al., OOPSLA 2014). ``mix32`` is three rounds of
xor-shift and multiply with the constants of Wellons' triple32, the high half of the row key being added
after the first round, so that two rows whose low halves lie close share no run of words. The low 31 bits
of w, at the middle of their interval, are a uniform v in (0, 1); the noise is the standard Gumbel
``-log(-log1p(-v))``, and a row's token is the argmax of logit plus noise (Gumbel-max).

The integer stages are exact and alike on every device (32-bit lanes wrap on all of them and are twice as
fast as 64-bit ones on a CPU); the logarithms may differ in the last bit.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["GUMBEL_MAX", "GUMBEL_MIN", "gumbel_noise", "row_keys", "sequence_key", "words"]

_MASK64 = (1 << 64) - 1
_PHI64 = 0x9E3779B97F4A7C15
_MIX64_A = 0xBF58476D1CE4E5B9
_MIX64_B = 0x94D049BB133111EB

_PHI32 = 0x9E3779B1 - (1 << 32)  # the signed 32-bit number of the same bits, like the numbers below
_MIX32_A = 0xED5AD4BB - (1 << 32)
_MIX32_B = 0xAC4C1B51 - (1 << 32)
_MIX32_C = 0x31848BAB

GUMBEL_MIN = -2.82  # for v = 1 - 2**-24, the largest that float32 tells from 1
GUMBEL_MAX = 22.19  # for v = 2**-32


def _mix64(value: int) -> int:
    value = ((value ^ (value >> 30)) * _MIX64_A) & _MASK64
    value = ((value ^ (value >> 27)) * _MIX64_B) & _MASK64
    return value ^ (value >> 31)


def sequence_key(seed: int, choice: int) -> int:
    """The 64-bit key of a sequence, from any integer ``seed`` (taken modulo 2**64) and its choice."""
    return _mix64((_mix64((seed + _PHI64) & _MASK64) + choice) & _MASK64)


def row_keys(sequence_keys: NDArray[np.uint64], positions: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Keys of the tokens about to be sampled, ``[R]``.

    Args:
        sequence_keys: ``[R]`` keys from ``sequence_key``.
        positions: ``[R]`` index of the sampled token in prompt plus output.
    """
    value = sequence_keys + positions.astype(np.uint64) * np.uint64(_PHI64)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(_MIX64_A)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(_MIX64_B)
    keys: NDArray[np.uint64] = value ^ (value >> np.uint64(31))
    return keys


def words(keys: NDArray[np.uint64], num_tokens: int, device: torch.device) -> Tensor:
    """Hashed words, int32 ``[R, num_tokens]``, all 32 bits of them random.

    Args:
        keys: ``[R]`` keys from ``row_keys``.
    """
    halves = torch.from_numpy(keys.view(np.int32).reshape(-1, 2)).to(device)
    if np.little_endian:
        low, high = halves[:, :1], halves[:, 1:]
    else:
        low, high = halves[:, 1:], halves[:, :1]
    counters = torch.arange(num_tokens, dtype=torch.int32, device=device).mul_(_PHI32)
    word = counters.unsqueeze(0) + low
    scratch = torch.empty_like(word)
    _xor_shift(word, 17, scratch)
    word.mul_(_MIX32_A).add_(high)
    _xor_shift(word, 11, scratch)
    word.mul_(_MIX32_B)
    _xor_shift(word, 15, scratch)
    word.mul_(_MIX32_C)
    _xor_shift(word, 14, scratch)
    return word


def _xor_shift(word: Tensor, bits: int, scratch: Tensor) -> None:
    """``word ^= word >>> bits`` in place; torch shifts signed words arithmetically, hence the mask."""
    torch.bitwise_right_shift(word, bits, out=scratch)
    word.bitwise_xor_(scratch.bitwise_and_((1 << (32 - bits)) - 1))


def gumbel_noise(keys: NDArray[np.uint64], num_tokens: int, device: torch.device) -> Tensor:
    """Standard Gumbel noise, float32 ``[R, num_tokens]``, within ``GUMBEL_MIN`` and ``GUMBEL_MAX``.

    Args:
        keys: ``[R]`` keys from ``row_keys``.
    """
    word = words(keys, num_tokens, device)
    # A small v makes large noise, which decides the draw; there float32 is exact, since v counts from zero.
    uniform = word.bitwise_and_(0x7FFFFFFF).to(torch.float32).add_(0.5).mul_(2.0**-31)
    exponential = uniform.clamp_(max=1 - 2.0**-24).neg_().log1p_().neg_()
    return exponential.log_().neg_()
