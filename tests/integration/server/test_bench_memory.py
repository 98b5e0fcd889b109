"""The benchmarks of shared memory, as quick as they go: that they run and report, not what they measure."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.gpu import GPU

from benchmarks.gpu import GpuLoad
from benchmarks.gpu import main as gpu
from benchmarks.residency import PARTS, ResidencyLoad
from benchmarks.residency import main as residency
from benchmarks.sharing import SharingLoad
from benchmarks.sharing import main as sharing
from benchmarks.soak import SoakLoad
from benchmarks.soak import main as soak
from engines.torch.weights.host_copy_view import HostCopyView
from mooring.errors import ConfigurationError, MooringError

pytestmark = pytest.mark.integration


def results(out: Path) -> dict[str, float]:
    """The figures, after a look at what lies beside them."""
    assert "## Figures" in (out / "report.md").read_text()
    figures: dict[str, float] = json.loads((out / "results.json").read_text())["figures"]
    return figures


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (
            "transitions",
            {"wake_share_of_copy", "load_share_of_read", "load_peak_over_weights", "asleep_bytes"},
        ),
        ("handover", {"kv_handover_ms"}),
        ("single_model", {"single_model_share", "arena_share_of_step"}),
        (
            "neighbours",
            {"wake_to_first_token_ratio", "neighbour_itl_p99_ratio", "neighbour_wake_over_idle"},
        ),
        ("host_tier", {"host_small_failures"}),
    ],
)
def test_each_part_of_the_residency_benchmark_reports_its_figures(
    part: str, expected: set[str], tmp_path: Path
) -> None:
    shown: dict[str, float] = {}
    figures = residency(tmp_path, ResidencyLoad.quick(), shown.__setitem__, (part,))
    assert figures == results(tmp_path) == shown
    assert expected <= set(figures)
    assert all(value >= 0 for value in figures.values())
    assert figures.get("asleep_bytes", 0) == figures.get("asleep_bytes_of_server", 0) == 0
    assert figures.get("load_peak_over_weights", 1) < 1.3


def test_the_residency_benchmark_has_the_planner_too() -> None:
    assert set(PARTS) == {"transitions", "handover", "single_model", "neighbours", "host_tier", "planner"}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda:0", marks=GPU)])
def test_the_gpu_benchmark_reports_its_figures(device: str, tmp_path: Path) -> None:
    figures = gpu(tmp_path, device, GpuLoad.quick())
    assert figures == results(tmp_path)
    assert {"wake_share_of_link", "fresh_wake_share_of_link", "kv_handover_ms"} <= set(figures)
    if device == "cpu":  # on a GPU, others may take memory meanwhile
        assert figures["resident_over_weights"] >= 1
        assert figures["asleep_bytes"] == 0


@pytest.mark.parametrize("device", ["cuda:99", "mps", "gpu"])
def test_the_gpu_benchmark_refuses_what_it_cannot_measure(device: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        gpu(tmp_path, device, GpuLoad.quick())


def test_the_gpu_benchmark_notices_a_wake_that_brings_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = HostCopyView.copy_to_host
    num_copies = itertools.count()

    def copy_twice(view: HostCopyView, *args: Any) -> None:
        if next(num_copies) < 2:  # both loads
            copy(view, *args)

    monkeypatch.setattr(HostCopyView, "copy_to_host", copy_twice)
    with pytest.raises(MooringError, match="says something else after its wakes"):
        gpu(tmp_path, "cpu", GpuLoad.quick())


@pytest.mark.slow
def test_the_sharing_benchmark_compares_real_servers_with_the_simulation(tmp_path: Path) -> None:
    lines: list[str] = []
    sharing(tmp_path, SharingLoad.quick(seed=0), lines.append)
    figures = results(tmp_path)
    assert figures["simulated_requests_per_s"] > 0
    assert 0 < figures["worst_elastic_over_static"] < 10
    assert figures["cells_unlike_simulation_real"] >= 0
    elastic, static = json.loads((tmp_path / "results.json").read_text())["data"]["real"]
    for cell in (elastic, static):
        assert cell["num_requests"] > cell["num_failed"] == 0
        assert 0 <= cell["attainment"] <= 1
        assert 0 <= cell["simulated"] <= 1
    assert list((tmp_path / "traces").glob("*.jsonl"))


@pytest.mark.slow
def test_a_benchmark_that_is_terminated_leaves_no_server(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mooring.cli", "bench", "sharing", "--quick", "--part", "real"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([*command, "--out", str(tmp_path / "out")], env=environment) as bench:
        deadline = time.monotonic() + 60
        while not (found := list(tmp_path.glob("mooring-bench-*/*/server.json"))):
            assert bench.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        server = json.loads(found[0].read_text())["pid"]
        bench.terminate()
        assert bench.wait(60) == 128 + signal.SIGTERM
    assert not Path(f"/proc/{server}").exists()


@pytest.mark.slow
def test_a_soak_loses_nothing_and_its_books_agree(tmp_path: Path) -> None:
    lines: list[str] = []
    load = SoakLoad.quick(seed=3)
    soak(tmp_path, load, lines.append)
    figures = results(tmp_path)
    assert figures["requests"] >= load.at_once
    assert (figures["lost"], figures["altered"]) == (0, 0), lines
    assert figures["checkpoints"] >= 1
    assert figures["ledger_mismatches"] == 0
