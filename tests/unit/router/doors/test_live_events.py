"""The journal's events on their way into the live feed."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

from memory_manager.fleet.events import EventKind
from model_registry.records import EventRecord
from mooring.errors import RegistryUnavailableError
from router.doors.admin.live import carry_events
from router.feed.publisher import NUM_KEPT, Publisher


class FlakyJournal:
    """Events that a test adds, in a registry that does not always answer."""

    def __init__(self) -> None:
        self.records: list[EventRecord] = []
        self.is_away = False
        self._written = asyncio.Event()

    def add(self, count: int) -> None:
        for _ in range(count):
            number = len(self.records) + 1
            self.records.append(
                EventRecord(
                    id=number, at_s=0.0, kind=EventKind.LOAD.value, deployment="a", replica_id="a/0",
                    worker_id="w", device="cpu", reason="why", figures={}, detail={},
                )
            )  # fmt: skip
        self.look()

    def look(self) -> None:
        self._written.set()

    async def newest_id(self) -> int:
        self._check()
        return len(self.records)

    async def events(self, limit: int, *, after_id: int, oldest_first: bool) -> list[EventRecord]:
        self._check()
        return self.records[after_id:][:limit]

    async def wait(self, timeout_s: float) -> bool:
        await self._written.wait()
        self._written.clear()
        return True

    def _check(self) -> None:
        if self.is_away:
            raise RegistryUnavailableError("the registry does not answer")


async def ids(frames: Any, count: int) -> list[int]:
    """Ids of the next events that a reader gets."""
    found: list[int] = []
    async with asyncio.timeout(20):
        while len(found) < count:
            told = [each for each in (await anext(frames)).split(b"\n\n") if each.startswith(b"event: event")]
            found += [json.loads(each.partition(b"data: ")[2])["id"] for each in told]
    return found


async def test_a_burst_is_told_whole_and_events_wait_for_a_registry_that_is_away() -> None:
    journal, publisher = FlakyJournal(), Publisher(lambda: {"devices": {}})
    publisher.while_read(lambda: carry_events(publisher, journal))  # type: ignore[arg-type]
    journal.add(3)
    async with contextlib.aclosing(publisher.frames()) as frames:
        await anext(frames)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        journal.add(2 * NUM_KEPT)
        assert await ids(frames, 2 * NUM_KEPT) == list(range(4, 4 + 2 * NUM_KEPT))
        journal.is_away = True
        journal.add(2)
        await asyncio.sleep(0.05)
        journal.is_away = False
        journal.look()
        assert await ids(frames, 2) == [4 + 2 * NUM_KEPT, 5 + 2 * NUM_KEPT]
