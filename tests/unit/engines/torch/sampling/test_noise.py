"""The noise is a fixed function, uniform, and without visible dependence between its arguments."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from engines.torch.sampling.noise import GUMBEL_MAX, GUMBEL_MIN, gumbel_noise, row_keys, sequence_key, words

CPU = torch.device("cpu")


def keys_of(seed: int, positions: NDArray[np.int64], choice: int = 0) -> NDArray[np.uint64]:
    return row_keys(np.full(len(positions), sequence_key(seed, choice), np.uint64), positions)


def unsigned_words(keys: NDArray[np.uint64], num_tokens: int) -> NDArray[np.uint32]:
    return words(keys, num_tokens, CPU).numpy().view(np.uint32)


def test_words_are_those_of_the_documented_hash() -> None:
    keys = keys_of(7, np.arange(3))
    token = np.arange(1000, dtype=np.uint32)
    with np.errstate(over="ignore"):
        x = token * np.uint32(0x9E3779B1) + (keys & np.uint64(0xFFFFFFFF)).astype(np.uint32)[:, None]
        x = (x ^ (x >> 17)) * np.uint32(0xED5AD4BB) + (keys >> np.uint64(32)).astype(np.uint32)[:, None]
        x = (x ^ (x >> 11)) * np.uint32(0xAC4C1B51)
        x = (x ^ (x >> 15)) * np.uint32(0x31848BAB)
        x = x ^ (x >> 14)
    np.testing.assert_array_equal(unsigned_words(keys, 1000), x)


def test_the_noise_never_changes_between_releases() -> None:
    assert sequence_key(0, 0) == 5197578548964807871
    assert sequence_key(1234, 1) == 17529322173113117098
    keys = keys_of(1234, np.array([5]), choice=1)
    np.testing.assert_array_equal(unsigned_words(keys, 3)[0], [3636646316, 1101022166, 1935436903])


@pytest.mark.parametrize("seed", [0, 1, 2**63, 2**64 - 1])
def test_words_are_uniform_over_tokens_and_over_positions(seed: int) -> None:
    over_tokens = unsigned_words(keys_of(seed, np.array([17])), 1 << 17)[0]
    over_positions = unsigned_words(keys_of(seed, np.arange(1 << 15)), 4)[:, 3]
    for sample in (over_tokens, over_positions):
        for bits in (sample >> 24, sample & 255, (sample >> 11) & 255):
            counts = np.bincount(bits, minlength=256)
            expected = len(sample) / 256
            chi_square = float(((counts - expected) ** 2 / expected).sum())
            assert 160 < chi_square < 370  # 255 degrees of freedom: far outside either has p < 1e-5


def test_gumbel_noise_has_the_gumbel_distribution_within_its_bounds() -> None:
    noise = np.sort(gumbel_noise(keys_of(3, np.arange(8)), 1 << 14, CPU).numpy().ravel())
    cumulative = np.exp(-np.exp(-noise.astype(np.float64)))
    steps = np.arange(1, len(noise) + 1) / len(noise)
    kolmogorov_smirnov = float(np.abs(cumulative - steps).max()) * len(noise) ** 0.5
    assert kolmogorov_smirnov < 2.0  # p = 7e-4
    assert noise[0] >= GUMBEL_MIN
    assert noise[-1] <= GUMBEL_MAX


@pytest.mark.parametrize("change", ["seed", "choice", "position"])
def test_rows_that_differ_in_one_argument_are_unrelated(change: str) -> None:
    base = unsigned_words(keys_of(5, np.array([9])), 1 << 15)[0]
    if change == "seed":
        other_key = keys_of(6, np.array([9]))
    elif change == "choice":
        other_key = keys_of(5, np.array([9]), choice=1)
    else:
        other_key = keys_of(5, np.array([10]))
    other = unsigned_words(other_key, 1 << 15)[0]
    flipped = np.unpackbits((base ^ other).view(np.uint8)).mean()
    assert abs(flipped - 0.5) < 0.003  # five standard deviations
    assert abs(np.corrcoef(base.astype(float), other.astype(float))[0, 1]) < 0.03


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    alone = gumbel_noise(keys_of(5, np.array([4])), 5000, CPU)
    among = gumbel_noise(keys_of(5, np.arange(7)), 5000, CPU)
    torch.testing.assert_close(alone[0], among[4], rtol=0, atol=2e-6)
    np.testing.assert_array_equal(
        unsigned_words(keys_of(5, np.array([4])), 5000)[0], unsigned_words(keys_of(5, np.arange(7)), 5000)[4]
    )
