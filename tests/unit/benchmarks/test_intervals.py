"""Ratios, shares and guesses with how sure they are."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.intervals import auc_of, is_as_expected, mean_ratio, share_interval


def test_ratios_are_of_pairs_and_their_interval_is_students() -> None:
    mean, half = mean_ratio([2.0, 6.0, 4.0], [1.0, 2.0, 2.0])
    assert mean == pytest.approx(7 / 3)
    assert half == pytest.approx(4.30 * (1 / 3) ** 0.5 / 3**0.5)
    assert mean_ratio([3.0], [2.0]) == (1.5, 0.0)
    assert mean_ratio([1.0], [0.0])[0] == pytest.approx(1000.0), "nothing is divided by nothing"


@given(st.integers(1, 10_000), st.data())
def test_a_share_lies_within_its_own_interval(num: int, data: st.DataObject) -> None:
    share = data.draw(st.integers(0, num)) / num
    low, high = share_interval(share, num)
    assert -1e-9 <= low <= share + 1e-9
    assert share - 1e-9 <= high <= 1 + 1e-9
    assert is_as_expected(share, num, share)


def test_a_share_is_unexpected_only_beyond_both_bounds() -> None:
    assert is_as_expected(0.5, 10_000, 0.54)
    assert is_as_expected(0.5, 100, 0.58)
    assert not is_as_expected(0.5, 10_000, 0.58)


FEW = st.lists(st.integers(-3, 3).map(float), min_size=2, max_size=12)


@given(FEW, FEW)
def test_the_auc_is_the_share_of_pairs_in_order(first: list[float], second: list[float]) -> None:
    pairs = [(a < b) + (a == b) / 2 for a in first for b in second]
    auc = auc_of(first, second)
    assert auc.value == pytest.approx(sum(pairs) / len(pairs))
    assert 0 <= auc.low <= auc.value + 1e-12
    assert auc.value - 1e-12 <= auc.high <= 1
    other_way = auc_of(second, first)
    assert (other_way.value, other_way.low, other_way.high) == pytest.approx(
        (1 - auc.value, 1 - auc.high, 1 - auc.low)
    )


def test_the_interval_of_an_auc_is_delongs() -> None:
    first, second = [1.0, 2.0, 4.0], [3.0, 5.0]
    # Each of the first is less than 2/2, 2/2, 1/2 of the second; of the first, 2/3 and 3/3 are less than theirs.
    variance = (1 / 12) / 3 + (1 / 18) / 2
    auc = auc_of(first, second)
    assert auc.value == pytest.approx(5 / 6)
    assert auc.low == pytest.approx(5 / 6 - 1.96 * variance**0.5)
    assert auc.high == 1
    apart = auc_of([1.0, 2.0], [3.0, 4.0])
    assert (apart.value, apart.low, apart.high) == (1, 1, 1)
    with pytest.raises(ValueError, match="two of each"):
        auc_of([1.0], [2.0, 3.0])


@pytest.mark.parametrize("apart", [0.0, 1.0])
def test_the_interval_of_an_auc_covers_what_is_true(apart: float) -> None:
    true_auc = statistics.NormalDist().cdf(apart / 2**0.5)
    rng = np.random.default_rng(7)
    num_runs = 400
    found = [
        auc_of(rng.normal(size=80).tolist(), rng.normal(apart, size=120).tolist()) for _ in range(num_runs)
    ]
    covered = sum(each.low <= true_auc <= each.high for each in found) / num_runs
    assert 0.92 <= covered <= 0.98
