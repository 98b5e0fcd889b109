"""The benchmark of isolation, as quick as it goes: that it runs, reports and would see a signal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.isolation import IsolationLoad, main

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def test_only_a_server_whose_tenants_share_tells_what_another_sent(tmp_path: Path) -> None:
    lines: list[str] = []
    load = IsolationLoad.quick(seed=0)
    figures = main(tmp_path, load, lines.append)
    results = json.loads((tmp_path / "results.json").read_text())
    assert figures == results["figures"]
    assert figures["foreign_cached_tokens"] == 0
    assert figures["victim_kept"] == 1, "what the attacker looked for was there"
    assert figures["timing_auc_low"] <= figures["timing_auc"] <= figures["timing_auc_high"]
    assert figures["timing_auc_unsalted"] > 0.5
    times = results["data"]["times_ms"]
    assert len(times["tenant"]["sent"]) == len(times["tenant"]["fresh"]) == load.num_requests // 2
    shared = (load.num_unsalted // 2) * load.prefix_tokens
    assert f"| {shared} | {load.num_unsalted // 2} of {load.num_unsalted // 2} |" in (
        (tmp_path / "report.md").read_text()
    ), "with a deployment that all share, each prefix is found"
    assert sum(line.startswith("MISS") for line in lines) == figures["missed"]
