"""The benchmark of abuse: that it runs and reports, and that it notices harm; not what it measures."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.abuse.attacks import Caller, cells
from benchmarks.abuse.benchmark import AbuseLoad, Result, main
from benchmarks.abuse.measure import Run, measure
from benchmarks.abuse.target import Strike, Target
from benchmarks.abuse.victims import Victims
from mooring.errors import ConfigurationError

pytestmark = pytest.mark.integration

STOPPED_S = 0.5


@pytest.fixture(scope="module")
def victims(tmp_path_factory: pytest.TempPathFactory) -> Victims:
    return Victims(tmp_path_factory.mktemp("abuse"), hold_s=0.1)


@pytest.fixture
def target(victims: Victims) -> Iterator[Target]:
    with victims.target(Caller.OPEN, None) as aimed:
        yield aimed


def attack(strike: Callable[[Target], None]) -> Callable[[Target], Strike]:
    def make(target: Target) -> Strike:
        def run() -> list[str]:
            strike(target)
            return ["done"]

        return run

    return make


@pytest.mark.slow
def test_cells_are_measured_and_reported(tmp_path: Path) -> None:
    lines: list[str] = []
    only = ("empty-messages/tokenize/stranger", "idle-connections/http/open")
    figures = main(tmp_path, AbuseLoad.quick(), only, lines.append)
    assert (figures["cells"], figures["altered"], len(lines)) == (2, 0, 2)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["figures"] == figures
    assert set(results["data"]["cells"]) == set(only)
    [run] = results["data"]["cells"]["empty-messages/tokenize/stranger"]["runs"]
    assert run["answers"] == {"401": 1}
    assert run["seconds"] > 0
    assert "| idle-connections | http |" in (tmp_path / "report.md").read_text()


@pytest.mark.slow
def test_a_stall_is_noticed_and_nothing_else(victims: Victims, target: Target) -> None:
    def stop(target: Target) -> None:
        os.kill(target.server.process.pid, signal.SIGSTOP)
        time.sleep(STOPPED_S)
        os.kill(target.server.process.pid, signal.SIGCONT)

    [run] = measure(victims, target, attack(stop), 1)
    assert run.stall_ms >= 900 * STOPPED_S
    assert run.pause_ms >= 900 * STOPPED_S
    assert not run.is_altered
    assert not run.died
    assert run.answers == {"done": 1}


@pytest.mark.slow
def test_a_death_is_noticed_and_ends_the_runs(victims: Victims, target: Target) -> None:
    [run] = measure(victims, target, attack(lambda aimed: aimed.server.kill()), 3)
    assert run.died
    assert run.is_altered


@pytest.mark.slow
def test_a_stream_that_says_something_else_is_altered(victims: Victims, target: Target) -> None:
    said, victims.good_text = victims.good_text, "something else"
    try:
        [run] = measure(victims, target, attack(lambda _: None), 1)
    finally:
        victims.good_text = said
    assert run.is_altered
    assert not run.errors


def test_a_result_is_the_median_less_a_quiet_time() -> None:
    runs = [
        Run(stall, quiet, 0.0, 1.0, 0, kept, is_altered=False, died=False)
        for stall, quiet, kept in ((90.0, 10.0, 1 << 20), (500.0, 20.0, 3 << 20), (120.0, 30.0, 2 << 20))
    ]
    result = Result(cells(["tiny-parts/grpc/open"])[0], runs)
    assert (result.stall_ms, result.kept_bytes, result.is_good) == (90.0, 2 << 20, True)


def test_what_is_no_attack_is_refused() -> None:
    assert {cell.caller for cell in cells(["*/*/stranger"])} == {Caller.STRANGER}
    with pytest.raises(ConfigurationError, match="half-bodies"):
        cells(["half-bodies/nowhere"])
