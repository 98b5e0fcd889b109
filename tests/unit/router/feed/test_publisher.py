"""Publishing: numbers without a gap, one computation for all readers and none for nobody, a snapshot for the slow."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from mooring.merge_patch import Document, patched
from router.feed.publisher import HURRIED_S, INTERVAL_S, NUM_KEPT, Publisher


class Source:
    """A state that a test changes; counts how often it was read."""

    def __init__(self) -> None:
        self.value = 0
        self.num_reads = 0

    def read(self) -> Document:
        self.num_reads += 1
        return {"devices": {"cpu": {"running": self.value}}, "fixed": {"name": "x"}}


def parsed(frames: bytes) -> list[tuple[str, Any]]:
    """Kind and data of each frame; its ``id``, if it has one, is the number in its data."""
    found = []
    for frame in frames.decode().split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in frame.splitlines())
        if "data" not in fields:
            continue  # a comment
        data = json.loads(fields["data"])
        assert fields.get("id", "") == str(data.get("seq", ""))
        found.append((fields["event"], data))
    return found


@contextlib.asynccontextmanager
async def reader(publisher: Publisher) -> AsyncIterator[Any]:
    frames = publisher.frames()
    try:
        yield frames
    finally:
        await frames.aclose()


async def test_a_reader_follows_the_state_by_patches_whose_numbers_have_no_gap() -> None:
    source = Source()
    publisher = Publisher(source.read)
    async with asyncio.timeout(20), reader(publisher) as frames:
        [(kind, snapshot)] = parsed(await anext(frames))
        assert kind == "snapshot"
        assert snapshot["epoch"] == publisher.epoch
        seq, state = snapshot["seq"], snapshot["state"]
        for value in range(1, 6):
            source.value = value
            publisher.publish()
            for kind, data in parsed(await anext(frames)):
                assert (kind, data["seq"]) == ("patch", seq + 1)
                seq, state = data["seq"], patched(state, data["patch"])
            assert state["devices"]["cpu"]["running"] == value
        assert state == publisher.publish().state
        assert "fixed" not in data["patch"]


async def test_what_does_not_change_is_not_published_and_its_time_stands() -> None:
    source = Source()
    now_s = iter(range(100, 200))
    publisher = Publisher(source.read, lambda: next(now_s))
    first = publisher.publish()
    assert publisher.publish() == first
    source.value = 1
    second = publisher.publish()
    assert (second.seq, second.state["at"]) == (first.seq + 1, first.state["at"] + 1)


async def test_nothing_is_computed_while_nobody_reads() -> None:
    source = Source()
    publisher = Publisher(source.read)
    publisher.hurry()
    await asyncio.sleep(2 * INTERVAL_S)
    assert source.num_reads == 0
    async with reader(publisher) as frames:
        await anext(frames)
    num_reads = source.num_reads
    publisher.hurry()
    await asyncio.sleep(2 * INTERVAL_S)
    assert source.num_reads == num_reads


async def test_many_readers_share_what_is_computed() -> None:
    source = Source()
    publisher = Publisher(source.read)
    async with contextlib.AsyncExitStack() as stack, asyncio.timeout(20):
        all_frames = [await stack.enter_async_context(reader(publisher)) for _ in range(20)]
        for frames in all_frames:
            await anext(frames)
        num_reads = source.num_reads
        source.value = 7
        told = {await anext(frames) for frames in all_frames}
        assert len(told) == 1
        assert source.num_reads <= num_reads + 2


async def test_a_change_that_is_to_be_seen_at_once_does_not_wait_for_its_turn() -> None:
    source = Source()
    publisher = Publisher(source.read)
    loop = asyncio.get_running_loop()
    async with reader(publisher) as frames:
        await anext(frames)
        waits_s = []
        for value in range(1, 6):
            source.value, began_s = value, loop.time()
            publisher.hurry()
            await anext(frames)
            waits_s.append(loop.time() - began_s)
    assert min(waits_s) >= HURRIED_S / 2
    assert min(waits_s) < 0.1 < INTERVAL_S


async def test_a_slow_reader_gets_a_new_snapshot_and_goes_on_from_it() -> None:
    source = Source()
    publisher = Publisher(source.read)
    async with asyncio.timeout(20), reader(publisher) as frames:
        await anext(frames)
        for value in range(1, NUM_KEPT + 2):
            source.value = value
            publisher.publish()
        [(kind, snapshot)] = parsed(await anext(frames))
        assert (kind, snapshot["seq"]) == ("snapshot", publisher.publish().seq)
        assert snapshot["state"]["devices"]["cpu"]["running"] == NUM_KEPT + 1
        source.value = -1
        publisher.publish()
        [(kind, data)] = parsed(await anext(frames))
        assert (kind, data["seq"]) == ("patch", snapshot["seq"] + 1)


async def test_a_reader_that_is_just_not_too_slow_misses_nothing() -> None:
    source = Source()
    publisher = Publisher(source.read)
    async with asyncio.timeout(20), reader(publisher) as frames:
        [(_, snapshot)] = parsed(await anext(frames))
        for value in range(1, NUM_KEPT + 1):
            source.value = value
            publisher.publish()
        told = parsed(await anext(frames))
        assert [data["seq"] for _, data in told] == [
            snapshot["seq"] + number for number in range(1, NUM_KEPT + 1)
        ]


async def test_the_last_devices_can_be_asked_for_by_number() -> None:
    source = Source()
    publisher = Publisher(source.read)
    for value in range(NUM_KEPT + 10):
        source.value = value
        publisher.publish()
    newest = publisher.publish().seq
    for seq in range(newest - NUM_KEPT + 1, newest + 1):
        devices = publisher.devices_at(seq)
        assert devices is not None
        assert devices["cpu"]["running"] == seq - 1
    assert publisher.devices_at(newest - NUM_KEPT) is None
    assert publisher.devices_at(newest + 1) is None


async def test_events_come_beside_the_state() -> None:
    publisher = Publisher(Source().read)
    async with asyncio.timeout(20), reader(publisher) as frames:
        await anext(frames)
        publisher.tell_events([b'{"kind":"load"}'])
        assert parsed(await anext(frames)) == [("event", {"kind": "load"})]


async def test_further_work_runs_while_somebody_reads() -> None:
    publisher = Publisher(Source().read)
    running = 0

    async def work() -> None:
        nonlocal running
        running += 1
        try:
            await asyncio.Event().wait()
        finally:
            running -= 1

    publisher.while_read(work)
    async with reader(publisher) as first, reader(publisher) as second:
        await anext(first)
        await anext(second)
        await asyncio.sleep(0)
        assert running == 1
    await asyncio.sleep(0)
    assert running == 0


async def test_the_end_of_the_server_ends_the_streams() -> None:
    publisher = Publisher(Source().read)
    async with asyncio.timeout(20), reader(publisher) as frames:
        await anext(frames)
        waiting = asyncio.create_task(anext(frames, b"the end"))
        await asyncio.sleep(0)
        publisher.shut()
        assert await waiting == b"the end"


async def test_events_that_come_at_once_are_all_told() -> None:
    publisher = Publisher(Source().read)
    async with asyncio.timeout(20), reader(publisher) as frames:
        await anext(frames)
        publisher.tell_events(b'{"number":%d}' % number for number in range(3 * NUM_KEPT))
        told = parsed(await anext(frames))
    assert [(kind, data["number"]) for kind, data in told] == [("event", n) for n in range(3 * NUM_KEPT)]


async def test_a_stream_ends_with_the_work_that_makes_it_and_the_next_one_begins_it_anew() -> None:
    source, broken = Source(), [True]
    publisher = Publisher(source.read)

    async def work() -> None:
        if broken.pop() if broken else False:
            raise RuntimeError("a bug")
        await asyncio.Event().wait()

    publisher.while_read(work)
    async with asyncio.timeout(20):
        async with reader(publisher) as frames:
            assert [kind for kind, _ in parsed(await anext(frames))] == ["snapshot"]
            assert [each async for each in frames] == []
        async with reader(publisher) as frames:
            await anext(frames)
            source.value = 5
            [(kind, _)] = parsed(await anext(frames))
            assert kind == "patch"
