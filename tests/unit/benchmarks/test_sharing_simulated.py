"""The grid of sharing policies in virtual time, and what is concluded from it."""

from __future__ import annotations

import pytest

from benchmarks.replay import Targets
from benchmarks.sharing_policies import SharingPolicy
from benchmarks.sharing_simulated import (
    CellResult,
    grid_figures,
    highest_attaining,
    quick_grid,
    simulate_grid,
    whole_grid,
)
from benchmarks.traces import TraceSpec
from memory_manager.policy.step_model import StepCosts

COSTS = StepCosts(step_s=0.01, decode_s=0.001, prefill_token_s=0.0002)
TRACE = TraceSpec(("a", "b", "c"), 1.0, 1.0, 2, 0.7, 1.0, 1.0, (32, 64), (128, 256))


def cell(
    num_resident: int, wake: float, load: float, elastic: float, static: float, swap: float = 0.1
) -> CellResult:
    shares = {
        policy: (share, share) for policy, share in zip(SharingPolicy, (elastic, static, swap), strict=True)
    }
    return CellResult(num_resident, wake, load, shares, dict.fromkeys(SharingPolicy, 1 / elastic))


def test_the_figures_are_those_of_the_cells() -> None:
    cells = [
        cell(3, 0.1, 1.0, 1.0, 1.0),
        cell(3, 0.1, 2.0, 0.995, 0.92, swap=0.199),
        cell(2, 0.1, 1.0, 0.99, 0.75),
        cell(2, 0.1, 2.0, 0.60, 0.72),
    ]
    figures = grid_figures(cells, num_models=3)
    assert figures["worst_elastic_over_static"] == pytest.approx(0.60 / 0.72)
    assert figures["cells_below_static"] == 1
    assert figures["cells_below_swap"] == 0
    assert figures["goodput_elastic_over_static"] == pytest.approx(2.0)
    assert figures["goodput_elastic_over_swap"] == pytest.approx(5.0)
    assert figures["goodput_elastic_over_static_two_of_three"] == pytest.approx(0.99 / 0.75)
    assert figures["peak_elastic_over_static_two_of_three"] == pytest.approx(1.2 / 1.44)


def test_a_load_above_one_that_was_missed_does_not_count() -> None:
    assert highest_attaining({1: 1.0, 2: 0.5, 4: 1.0}, 0.99) == 1
    assert highest_attaining({1: 0.98}, 0.99) is None
    assert highest_attaining({}, 0.99) is None


def test_a_grid_gives_each_policy_the_same_requests() -> None:
    whole = whole_grid(COSTS, TRACE, 3200, Targets(0.2, 0.1))
    assert len(whole.loads_per_s) == 6
    lines: list[str] = []
    cells, requests_per_s = simulate_grid(quick_grid(whole), lines.append, num_processes=1)
    assert len(cells) == len(lines) == 4
    assert requests_per_s > 0
    for each in cells:
        assert all(len(shares) == 2 for shares in each.attainment.values())
        assert each.mean(SharingPolicy.ELASTIC) >= each.mean(SharingPolicy.SWAP)
