"""Floods and gaps of service in virtual time, and what is concluded from them."""

from __future__ import annotations

import pytest

from benchmarks.fairness import FairnessTrace, FloodResult, GapResult, figures_of, run_flood, run_gap
from benchmarks.slo.benchmark import slo_machine
from benchmarks.slo.workload import TenantWorkload
from memory_manager.policy.device_queue import QueuePolicy
from memory_manager.policy.step_model import StepCosts

COSTS = StepCosts(step_s=0.01, decode_s=0.001, prefill_token_s=0.0002)
MACHINE = slo_machine(COSTS, TenantWorkload(("a", "b", "c"), 2), 3200)


def test_the_figures_are_ratios_by_seed_and_the_worst_gap() -> None:
    floods = [
        FloodResult(policy, 1.0, times, 0.5)
        for policy, ratios in ((QueuePolicy.SLO, (1.0, 1.2)), (QueuePolicy.FCFS, (10.0, 30.0)))
        for times in ratios
    ]
    gaps = [GapResult((1.0, 1.0), 1.0, 4.0, 1.0), GapResult((2.0, 1.0), 3.0, 4.0, 2.0)]
    figures = figures_of(floods, gaps)
    assert figures["victim_ttft_p99_ratio"] == pytest.approx(1.1)
    assert figures["victim_ttft_p99_ratio_fcfs"] == pytest.approx(20.0)
    assert figures["service_gap_over_bound"] == pytest.approx(0.75)


def test_a_flood_is_felt_and_takes_much_if_all_are_served_as_they_came() -> None:
    found = run_flood(FairnessTrace(MACHINE, 40, 3.0, seed=0, policy=QueuePolicy.FCFS))
    assert 0 < found.quiet_p99_s < found.flooded_p99_s
    assert 0.5 < found.flooder_share < 1


@pytest.mark.parametrize("weights", [(1.0, 1.0), (2.0, 1.0)])
def test_two_that_always_wait_have_service_by_their_weights(weights: tuple[float, float]) -> None:
    found = run_gap(FairnessTrace(MACHINE, 300, 12.0, seed=1, weights=weights))
    assert found.service_ratio == pytest.approx(weights[0] / weights[1], rel=0.2)
    assert 0 < found.gap_s <= found.bound_s
