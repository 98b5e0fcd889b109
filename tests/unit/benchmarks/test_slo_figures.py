"""Figures of the queue's policies: from given cells, and from a few short ones in virtual time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.report import Report
from benchmarks.slo.benchmark import slo_machine
from benchmarks.slo.decisions import decision_s
from benchmarks.slo.figures import best_bounded, figures_of_cells, load_name, report_cells_of_policies
from benchmarks.slo.judged import JudgedRun, PredictionScore
from benchmarks.slo.real import RealRun, figures_of_runs
from benchmarks.slo.simulated import BOUNDED_LOAD, PolicyCell, SloGrid, Variant, find_capacity, run_grid
from benchmarks.slo.workload import TENANTS, TenantWorkload
from benchmarks.step_costs import filling_per_s
from memory_manager.policy.device_queue import QueuePolicy
from memory_manager.policy.step_model import StepCosts

COSTS = StepCosts(step_s=0.01, decode_s=0.001, prefill_token_s=0.0002)
WORKLOAD = TenantWorkload(("a", "b", "c"), 2)
GUESS_PER_S = filling_per_s(COSTS, 3, 3200, WORKLOAD.num_prompt, WORKLOAD.num_output)
GRID = SloGrid(slo_machine(COSTS, WORKLOAD, 3200), WORKLOAD, GUESS_PER_S).quick()


def run(attained: int, batch: int = 4, num: int = 10) -> JudgedRun:
    names = [each.name for each in TENANTS]
    score = PredictionScore(20, 0.75, 0.5)
    return JudgedRun(
        num=dict.fromkeys(names, num),
        attained=dict.fromkeys(names, attained),
        refused=dict.fromkeys(names, 1),
        completed={**dict.fromkeys(names, attained), "batch": batch},
        goodput_per_s=attained * len(names) / 10,
        completed_per_s=1.0,
        ttft_mean_s=0.2,
        accepted_met=0.9,
        predictions=score,
        interactive_predictions=score,
    )


def cell(
    load: float, policy: QueuePolicy, attained: tuple[int, ...], batch: int = 4, bound: int | None = None
) -> PolicyCell:
    variant = Variant(policy, bound or 1024, is_bounded=bound is not None)
    return PolicyCell(load, variant, tuple(run(each, batch) for each in attained))


CELLS = [
    cell(0.8, QueuePolicy.SLO, (10, 9)),
    cell(1.0, QueuePolicy.SLO, (8, 8)),
    cell(BOUNDED_LOAD, QueuePolicy.FCFS, (4, 2), batch=8),
    cell(BOUNDED_LOAD, QueuePolicy.SLO, (8, 8), batch=2),
    cell(BOUNDED_LOAD, QueuePolicy.FCFS, (5, 5), bound=1),
    cell(BOUNDED_LOAD, QueuePolicy.VTC, (8, 4), bound=2),
    cell(3.0, QueuePolicy.SLO, (4, 8)),
]


def test_the_figures_are_those_of_the_cells() -> None:
    figures = figures_of_cells(CELLS)
    assert figures["goodput_slo_over_fcfs_1_2"] == pytest.approx((8 / 4 + 8 / 2) / 2), "seed by seed"
    assert figures["goodput_slo_over_fcfs_1_2_half_interval"] == pytest.approx(12.71)
    best = best_bounded(CELLS)
    assert best is not None
    assert best.variant.name == "vtc of 2"
    assert figures["goodput_slo_over_best_bounded_1_2"] == pytest.approx((1 + 2) / 2)
    assert figures["batch_share_of_fcfs_1_2"] == pytest.approx(0.25)
    assert figures["goodput_3_0_over_1_0"] == pytest.approx((0.5 + 1) / 2)
    assert figures["attainment_tight_0_8"] == pytest.approx(0.95)
    assert figures["attainment_tight_1_0"] == figures["attainment_loose_1_0"] == pytest.approx(0.8)
    assert figures["accepted_met_simulated_3_0"] == pytest.approx(0.9)
    assert figures["prediction_within_25_simulated_0_8"] == pytest.approx(0.75)
    assert figures["prediction_mape_simulated_1_2"] == pytest.approx(0.5)


def test_what_the_cells_do_not_tell_is_left_out() -> None:
    assert figures_of_cells([]) == {}
    assert best_bounded(CELLS[:4]) is None
    figures = figures_of_cells(CELLS[:1])
    assert "attainment_tight_0_8" in figures
    assert not [name for name in figures if name.startswith(("goodput", "batch"))]


def test_loads_are_named_as_in_figures() -> None:
    assert [load_name(load) for load in (0.8, 1.0, 3.0)] == ["0_8", "1_0", "3_0"]


def test_a_report_shows_every_cell_and_a_plot(tmp_path: Path) -> None:
    report = Report(tmp_path, "slo")
    report_cells_of_policies(report, GRID, 2.0, CELLS, 500.0)
    report.write()
    page = (tmp_path / "report.md").read_text()
    for each in CELLS:
        assert page.count(f"| {each.load:g} | {each.variant.name} |") == 2
    assert "The best of those with a bounded queue is vtc of 2." in page
    assert "](slo.png)" in page
    assert (tmp_path / "slo.png").read_bytes().startswith(b"\x89PNG")


def test_real_runs_are_compared_with_the_simulation_of_their_trace() -> None:
    def real(load: float, measured: int, simulated: int, refusals_s: tuple[float, ...]) -> RealRun:
        return RealRun(load, COSTS, run(measured, num=100), run(simulated, num=100), (), refusals_s, 1, {})

    figures = figures_of_runs([real(0.8, 90, 88, ()), real(3.0, 90, 70, (0.010, 0.012))])
    assert figures["tenants_unlike_simulation"] == len(TENANTS)
    assert figures["attainment_tight_real_0_8"] == pytest.approx(0.9)
    assert figures["accepted_met_3_0"] == pytest.approx(0.9)
    assert 11.9 < figures["refusal_ms_p99"] <= 12.0
    assert figures["wakes_real"] == 2
    assert "refusal_ms_p99" not in figures_of_runs([real(0.8, 9, 9, ())])


def test_every_policy_of_a_load_gets_the_same_requests() -> None:
    capacity_per_s = find_capacity(GRID, num_processes=1)
    assert GUESS_PER_S / 2 <= capacity_per_s <= GUESS_PER_S * 2
    lines: list[str] = []
    cells, requests_per_s = run_grid(GRID, capacity_per_s, lines.append, num_processes=1)
    assert len(cells) == len(lines) == 3 * len(QueuePolicy) + 3
    assert requests_per_s > 0
    for load in GRID.loads:
        own = [each for each in cells if each.load == load]
        assert all(len(each.runs) == GRID.num_seeds for each in own)
        for seed in range(GRID.num_seeds):
            first = own[0].runs[seed].num
            assert all(each.runs[seed].num == first for each in own)
            assert sum(first.values()) > 0
    usual = [each for each in cells if not each.variant.is_bounded]
    assert not any(_num_refused(each) for each in usual if each.variant.policy is not QueuePolicy.SLO)


def test_a_bounded_queue_refuses_what_finds_it_full() -> None:
    grid = replace(GRID, loads=(BOUNDED_LOAD,), num_seeds=1)
    cells, _ = run_grid(grid, 10 * GUESS_PER_S, lambda line: None, num_processes=1)
    bounded = [each for each in cells if each.variant.is_bounded]
    assert [each.variant.name for each in bounded] == ["fcfs of 1", "sjf of 1", "vtc of 1"]
    assert all(_num_refused(each) > 0 for each in bounded)


def _num_refused(found: PolicyCell) -> int:
    return sum(sum(each.refused.values()) for each in found.runs)


def test_the_time_of_a_decision_grows_with_the_queue() -> None:
    short_s, long_s = (decision_s(COSTS, num_waiting, num_times=50) for num_waiting in (1, 400))
    assert 0 < short_s < long_s
