"""Alerts: what holds, how grave it is, and since when."""

from __future__ import annotations

import pytest

from engines.supervise.supervisor import WorkerProcess, WorkerState
from memory_manager.fleet.status import DeviceStatus, Snapshot
from mooring.slo import SLOClass
from router.feed.alerts import Alerts, conditions
from router.telemetry.attainment import Attainments, Miss
from router.telemetry.waits import Spent

NOW_S = 10_000.0


def snapshot(*, others_bytes: int = 0, num_ledger_mismatches: int = 0) -> Snapshot:
    owners = {"reserve": 10, "others": others_bytes} if others_bytes else {"reserve": 10}
    return Snapshot(NOW_S, (DeviceStatus("cpu", 100, owners),), (), (), num_ledger_mismatches, ())


def attainments(goal: float | None, *outcomes: tuple[float, int, int]) -> Attainments:
    """``outcomes``: seconds before now, and how many requests met and missed their targets then."""
    found = Attainments()
    slo_class = (
        None if goal is None else SLOClass(name="gold", ttft_target_s=1.0, tpot_target_s=1.0, goal=goal)
    )
    for ago_s, num_met, num_missed in outcomes:
        for number in range(num_met + num_missed):
            miss = None if number < num_met else Miss("r", 0.0, None, None, Spent(0.0, 0.0, None, None))
            found.note("acme", slo_class, "m", miss, NOW_S - ago_s)
    return found


def found(judged: Attainments) -> list[tuple[str, str]]:
    return [(each.id, each.severity) for each in conditions(snapshot(), judged.entries(), {}, NOW_S)]


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([(0, 100, 0)], []),
        ([(0, 99, 1)], []),  # just what is allowed
        ([(1800, 980, 15), (0, 5, 0)], [("below_goal:acme|gold|m", "warning")]),
        ([(1800, 970, 25), (0, 5, 0)], [("below_goal:acme|gold|m", "warning")]),  # the last minute is well
        ([(1800, 970, 20), (0, 5, 5)], [("burning_slowly:acme|gold|m", "warning")]),
        ([(1800, 900, 80), (0, 10, 10)], [("burning_fast:acme|gold|m", "critical")]),
        ([(1800, 900, 90), (0, 10, 0)], [("below_goal:acme|gold|m", "warning")]),
        ([(0, 0, 9)], []),  # too few to judge by
        ([(0, 0, 10)], [("burning_fast:acme|gold|m", "critical")]),
    ],
)
def test_the_gravest_condition_of_a_goal_is_told(
    outcomes: list[tuple[float, int, int]], expected: list[tuple[str, str]]
) -> None:
    assert found(attainments(0.99, *outcomes)) == expected


def test_a_goal_that_allows_much_can_still_burn_fast() -> None:
    assert found(attainments(0.5, (0, 1, 19))) == [("burning_fast:acme|gold|m", "critical")]


def test_best_effort_has_no_goal_to_miss() -> None:
    assert found(attainments(None, (0, 0, 100))) == []


def test_foreign_memory_restarts_and_mismatches_are_told() -> None:
    assert conditions(snapshot(), [], {"w": 0}, NOW_S) == []
    alerts = conditions(snapshot(others_bytes=5, num_ledger_mismatches=2), [], {"w": 3}, NOW_S)
    assert [(each.id, each.severity) for each in alerts] == [
        ("foreign_memory:cpu", "warning"),
        ("worker_restarting:w", "warning"),
        ("ledger_mismatch", "critical"),
    ]
    assert "3 times" in alerts[1].text


def test_an_alert_keeps_its_beginning_until_it_is_over() -> None:
    kept = Alerts()
    alerts = conditions(snapshot(num_ledger_mismatches=1), [], {}, NOW_S)
    assert kept.note(alerts, 100.0)["ledger_mismatch"]["since"] == 100.0
    assert kept.note(alerts, 200.0)["ledger_mismatch"]["since"] == 100.0
    assert kept.note([], 300.0) == {}
    assert kept.note(alerts, 400.0)["ledger_mismatch"]["since"] == 400.0


def test_restarts_count_for_ten_minutes() -> None:
    def worker(restarts_total: int) -> WorkerProcess:
        return WorkerProcess("w", 1, "cpu", WorkerState.READY, restarts_total)

    kept = Alerts()
    assert kept.note_workers([worker(0)], 0.0) == {"w": 0}
    assert kept.note_workers([worker(2)], 10.0) == {"w": 2}
    assert kept.note_workers([worker(3)], 500.0) == {"w": 3}
    assert kept.note_workers([worker(3)], 611.0) == {"w": 1}
    assert kept.note_workers([worker(3)], 1101.0) == {"w": 0}
    assert kept.note_workers([], 1102.0) == {}
