"""What is concluded from real servers beside the simulation."""

from __future__ import annotations

import pytest

from benchmarks.replay import Summary
from benchmarks.sharing_policies import Budget, SharingPolicy
from benchmarks.sharing_real import RealCell, figures_of


def cell(policy: SharingPolicy, attained: float, simulated: float, p99_s: float, num: int = 100) -> RealCell:
    summary = Summary(attained, attained, 0.1, p99_s, 0.1, num, 0)
    return RealCell(Budget.ALL, 0.75, 0.5, policy, summary, simulated, 0.0)


def test_the_interval_of_a_share_lies_within_0_and_1_and_shrinks() -> None:
    low, high = cell(SharingPolicy.ELASTIC, 1.0, 1.0, 0.1).interval
    assert (low, high) == (pytest.approx(0.963, abs=1e-3), pytest.approx(1.0))
    low, high = cell(SharingPolicy.ELASTIC, 0.5, 0.5, 0.1).interval
    assert (low, high) == (pytest.approx(0.404, abs=1e-3), pytest.approx(0.596, abs=1e-3))


def test_a_cell_is_unlike_the_simulation_only_beyond_both_bounds() -> None:
    def is_alike(simulated: float, num: int) -> bool:
        return cell(SharingPolicy.ELASTIC, 0.5, simulated, 0.1, num).is_as_simulated

    assert is_alike(0.54, num=10_000)
    assert is_alike(0.58, num=100)
    assert not is_alike(0.58, num=10_000)
    assert not is_alike(0.65, num=100)


def test_elastic_is_compared_with_static_in_each_cell() -> None:
    cells = [cell(SharingPolicy.ELASTIC, 0.9, 0.9, 0.2), cell(SharingPolicy.STATIC, 0.6, 0.9, 3.0)]
    assert figures_of(cells) == {
        "cells_unlike_simulation": 1.0,
        "goodput_elastic_over_static_all_0.75": pytest.approx(1.5),
        "ttft_p99_static_over_elastic_all_0.75": pytest.approx(15.0),
    }
