"""Ratios and shares with how sure they are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.intervals import is_as_expected, mean_ratio, share_interval


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
