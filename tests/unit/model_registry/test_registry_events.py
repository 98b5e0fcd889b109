"""Events in the registry: kept in order, found by what they are about, bounded."""

from __future__ import annotations

import pytest
from support.databases import ENGINES

from model_registry.database import open_database
from model_registry.records import EventRecord, NewEvent
from model_registry.registry import Registry

DETAIL = {"displaced": ["b"], "gained": ["a"], "scores": {"gain": 2.5}, "bytes": 2**40}


def new(number: int, deployment: str | None = "a", kind: str = "load") -> NewEvent:
    return NewEvent(
        1.7e9 + number,
        kind,
        deployment,
        f"{deployment}/0",
        "w",
        "cpu",
        f"number {number}",
        {"bytes": 2**40},
        DETAIL,
    )


@pytest.fixture
def registry(database_url: str) -> Registry:
    return Registry(open_database(database_url), ENGINES)


def numbers(found: list[EventRecord]) -> list[int]:
    return [int(each.reason.split()[1]) for each in found]


def test_what_is_kept_is_what_was_given(registry: Registry) -> None:
    registry.add_events([new(0), new(1, None, "budget")], max_kept=10)
    second, first = registry.list_events(10)
    assert second.id > first.id
    assert (first.at_s, first.kind, first.deployment, first.replica_id) == (1.7e9, "load", "a", "a/0")
    assert (first.worker_id, first.device, first.figures) == ("w", "cpu", {"bytes": 2**40})
    assert first.detail == DETAIL
    assert (second.kind, second.deployment) == ("budget", None)
    assert registry.newest_event_id() == second.id


def test_pages_in_both_directions(registry: Registry) -> None:
    assert registry.newest_event_id() == 0
    assert registry.list_events(10) == []
    registry.add_events([new(i) for i in range(5)], max_kept=10)
    newest = registry.list_events(2)
    assert numbers(newest) == [4, 3]
    assert numbers(registry.list_events(2, before_id=newest[-1].id)) == [2, 1]
    after = registry.list_events(10, after_id=newest[-1].id - 2, oldest_first=True)
    assert numbers(after) == [2, 3, 4]
    assert registry.list_events(10, after_id=newest[0].id) == []


def test_found_by_deployment_and_kind(registry: Registry) -> None:
    registry.add_events([new(0, "a"), new(1, "b"), new(2, "a", "sleep"), new(3, "a", "wake")], max_kept=10)
    assert numbers(registry.list_events(10, deployment="a")) == [3, 2, 0]
    assert numbers(registry.list_events(10, deployment="a", kinds=("sleep", "load"))) == [2, 0]


def test_the_oldest_go_beyond_the_limit(registry: Registry) -> None:
    for start in range(0, 30, 3):
        registry.add_events([new(start + i) for i in range(3)], max_kept=7)
        assert len(registry.list_events(100)) <= 7
    assert numbers(registry.list_events(100)) == [29, 28, 27, 26, 25, 24, 23]
