"""The journal: events reach the registry in batches, whatever the database does meanwhile."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.databases import ENGINES

from memory_manager.fleet.events import Event, EventKind
from model_registry.database import open_database
from model_registry.records import NewEvent
from model_registry.registry import Registry
from mooring.errors import RegistryUnavailableError
from router.control.journal import Journal, JournalConfig

CONFIG = JournalConfig(max_kept=50, flush_s=0.02, max_pending=4, max_flush_s=0.05)


class Flaky(Registry):
    """A real registry whose database can be away."""

    away = False
    num_writes = 0

    def add_events(self, events: Sequence[NewEvent], max_kept: int) -> None:
        if self.away:
            raise RegistryUnavailableError("the registry's database does not answer: try again")
        self.num_writes += 1
        super().add_events(events, max_kept)


@pytest.fixture
def registry(tmp_path: Path) -> Flaky:
    return Flaky(open_database(f"sqlite:///{tmp_path}/registry.db"), ENGINES)


def load(number: int) -> Event:
    return Event(float(number), EventKind.LOAD, f"number {number}", "a", "a/0", figures={"bytes": number})


def refusal(code: str, deployment: str = "a") -> Event:
    figures = {"code": code, "num_refused": 1}
    return Event(0.0, EventKind.REFUSE, f"refused: {code}", deployment, figures=figures)


async def test_what_is_noted_is_there_for_who_asks_next(registry: Flaky) -> None:
    journal = Journal(registry, CONFIG, offset_s=lambda: 1000.0)
    for number in range(3):
        journal.note(load(number))
    found = await journal.events(10)
    assert [(each.at_s, each.reason) for each in found] == [
        (1002.0, "number 2"),
        (1001.0, "number 1"),
        (1000.0, "number 0"),
    ]
    assert registry.num_writes == 1, "one batch"
    assert await journal.newest_id() == found[0].id


async def test_refusals_between_two_writes_are_one_event_for_each_reason(registry: Flaky) -> None:
    journal = Journal(registry, CONFIG)
    for _ in range(1000):
        journal.note(refusal("server_overloaded"))
        journal.note(refusal("server_overloaded", "b"))
    journal.note(load(1))
    journal.note(refusal("insufficient_memory"))
    told = [
        (e.deployment, e.figures.get("code"), e.figures.get("num_refused")) for e in await journal.events(9)
    ]
    assert told == [
        ("a", "insufficient_memory", 1),
        ("a", None, None),
        ("b", "server_overloaded", 1000),
        ("a", "server_overloaded", 1000),
    ]
    journal.note(refusal("server_overloaded"))
    assert (await journal.events(1))[0].figures["num_refused"] == 1


async def test_it_writes_by_itself_and_wakes_who_waits(registry: Flaky) -> None:
    journal = Journal(registry, CONFIG)
    journal.start()
    journal.note(load(1))
    assert await journal.wait(timeout_s=5)
    assert len(registry.list_events(10)) == 1
    assert await journal.wait(timeout_s=0.01), "nothing came, and it is not shut"
    journal.note(load(2))
    await journal.stop()
    assert len(registry.list_events(10)) == 2, "what was left is written at the end"
    assert not await journal.wait(timeout_s=5)


def num_lost(caplog: pytest.LogCaptureFixture) -> int:
    return sum(map(int, re.findall(r"(\d+) events are lost", caplog.text)))


async def test_events_wait_for_a_database_that_is_away(
    registry: Flaky, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(registry, CONFIG)
    journal.start()
    registry.away = True
    for number in range(10):
        journal.note(load(number))
    with pytest.raises(RegistryUnavailableError):
        registry.add_events([], 1)
    async with asyncio.timeout(20):
        while num_lost(caplog) < 6:  # noqa: ASYNC110 - of the journal's own task, in its own time
            await asyncio.sleep(0.01)
        registry.away = False
        while not registry.list_events(10):  # noqa: ASYNC110 - likewise
            await asyncio.sleep(0.01)
    await journal.stop()
    assert [each.figures["bytes"] for each in registry.list_events(10)] == [9, 8, 7, 6]
    assert num_lost(caplog) == 6


async def test_the_log_has_reason_and_figures(registry: Flaky, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    journal = Journal(registry, CONFIG)
    journal.note(Event(0.0, EventKind.FAILURE, "corrupt", "a", "a/0", figures={"retry_in_s": 0.123456}))
    journal.note(Event(0.0, EventKind.KV_LEASE, "KV grows", worker_id="w"))
    first, second = caplog.records
    assert (first.levelname, first.message) == ("WARNING", "failure a/0: corrupt [retry_in_s=0.1235]")
    assert (second.levelname, second.message) == ("DEBUG", "kv_lease w: KV grows")


class Slow(Flaky):
    """A registry whose writes are held up until they are let go."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.began, self.go_on = threading.Event(), threading.Event()

    def add_events(self, events: Sequence[NewEvent], max_kept: int) -> None:
        self.began.set()
        assert self.go_on.wait(10)
        super().add_events(events, max_kept)


async def test_who_gives_up_asking_takes_no_events_along(tmp_path: Path) -> None:
    registry = Slow(open_database(f"sqlite:///{tmp_path}/registry.db"), ENGINES)
    journal = Journal(registry, CONFIG)
    journal.note(load(1))
    asking = asyncio.ensure_future(journal.events(10))
    await asyncio.to_thread(registry.began.wait, 10)
    asking.cancel()
    await asyncio.wait([asking])
    registry.away = True  # for the write that goes on unseen
    registry.go_on.set()
    later = asyncio.ensure_future(journal.events(10))
    await asyncio.sleep(0.1)
    registry.away = False
    await later
    assert [each.reason for each in await journal.events(10)] == ["number 1"]


async def test_events_do_not_pile_up_behind_a_write_that_hangs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry = Slow(open_database(f"sqlite:///{tmp_path}/registry.db"), ENGINES)
    journal = Journal(registry, CONFIG)
    journal.start()
    journal.note(load(0))
    await asyncio.to_thread(registry.began.wait, 10)
    for number in range(1, 1000):
        journal.note(load(number))
    registry.go_on.set()
    found = await journal.events(100)
    await journal.stop()
    assert [each.figures["bytes"] for each in found[:4]] == [999, 998, 997, 996]
    assert len(found) <= 1 + 2 * CONFIG.max_pending
    assert "events are lost" in caplog.text


async def test_an_event_that_cannot_be_kept_holds_up_no_other(registry: Flaky) -> None:
    journal = Journal(registry, CONFIG)
    journal.note(Event(0.0, EventKind.FAILURE, "no file m\udce4rz.bin\0", "a"))
    assert [each.reason for each in await journal.events(10)] == ["no file m?rz.bin"]
    journal.note(Event(0.0, EventKind.FAILURE, "x", "m\udce4rz"))
    await journal.events(10)
    journal.note(load(1))
    assert [each.reason for each in await journal.events(1)] == ["number 1"]
