"""The benchmarks of the queue, as quick as they go: that they run and report, not what they measure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.fairness import FairnessLoad
from benchmarks.fairness import main as fairness
from benchmarks.slo.benchmark import SloLoad
from benchmarks.slo.benchmark import main as slo

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def test_the_slo_benchmark_compares_a_real_server_with_the_simulation(tmp_path: Path) -> None:
    lines: list[str] = []
    figures = slo(tmp_path, SloLoad.quick(seed=0), lines.append)
    results = json.loads((tmp_path / "results.json").read_text())
    assert figures == results["figures"]
    assert figures["capacity_per_s"] > 0
    assert figures["goodput_slo_over_fcfs_1_2"] > 0
    assert figures["decision_us"] > 0
    for run in results["data"]["real"]:
        measured = run["measured"]
        assert measured["num"] == run["simulated"]["num"], "the very same trace"
        assert sum(measured["num"].values()) > 0
        assert run["errors"] == {}
    assert 0 < figures["prediction_within_25"] <= 1, "answers say what was predicted"
    assert len(list((tmp_path / "traces").glob("*.jsonl"))) == 12
    assert "](slo.png)" in (tmp_path / "report.md").read_text()


def test_the_fairness_benchmark_reports_its_figures(tmp_path: Path) -> None:
    lines: list[str] = []
    load = FairnessLoad.quick()
    figures = fairness(tmp_path, load, lines.append)
    results = json.loads((tmp_path / "results.json").read_text())
    assert figures == results["figures"]
    assert {"victim_ttft_p99_ratio", "victim_ttft_p99_ratio_fcfs"} <= set(figures)
    assert 0 < figures["service_gap_over_bound"] <= 1
    assert len(results["data"]["floods"]) == len(results["data"]["gaps"]) == 2 * load.num_seeds
