"""What the manager tells of its decisions, and what it answers who asks why."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from support.simulated_house import BUDGET, CONFIG, House, house, virtually
from support.simulated_memory import PAGE, SimulatedWorker, deployment

from memory_manager.fleet.events import EventKind
from memory_manager.policy.what_if import Verdict
from memory_manager.stats import ReplicaStats, WorkerStats
from mooring.errors import (
    ArtifactError,
    InsufficientMemoryError,
    ModelNotFoundError,
    ModelUnavailableError,
    OverloadedError,
)


@virtually
async def test_an_eviction_is_told_with_what_decided_it() -> None:
    async with house() as h:
        h.add_worker()
        for name in "abc":
            h.manager.upsert_deployment(deployment(name))
        for name in "abc":
            (await h.manager.acquire(name)).release()
            await asyncio.sleep(1)
        assert [e.deployment for e in h.told(EventKind.LOAD)] == ["a", "b", "c"]
        (evicted,) = h.told(EventKind.EVICT)
        assert evicted.deployment in ("a", "b")
        assert (evicted.worker_id, evicted.device) == ("worker-cpu", "cpu")
        figures = evicted.figures
        assert (figures["room_for"], figures["needed_bytes"], figures["freed_bytes"]) == (
            "c",
            12 * PAGE,
            12 * PAGE,
        )
        assert figures["num_active"] == 0
        assert float(figures["resident_s"]) > 0.9
        assert evicted.detail["displaced"] == [evicted.deployment]
        assert evicted.detail["gained"] == ["c"]
        assert evicted.detail["bytes"] == 12 * PAGE
        scores = evicted.detail["scores"]
        assert {name: figures[name] for name in ("gain", "loss", "switching", "margin")} == {
            name: scores[name] for name in ("gain", "loss", "switching", "margin")
        }
        assert scores["net"] == scores["gain"] - scores["loss"] - scores["switching"] - scores["margin"]
        first, *_, last = h.told(EventKind.LOAD)
        assert first.detail == {"displaced": [], "gained": ["a"], "scores": {}, "bytes": 10 * PAGE}
        assert last.detail == {**evicted.detail, "bytes": 10 * PAGE}
        ready = h.told(EventKind.READY, of="c")[0]
        assert ready.figures["weights_bytes"] == 10 * PAGE
        assert float(ready.figures["seconds"]) == pytest.approx(0.15, abs=0.02)


@virtually
async def test_who_goes_for_its_own_sake_makes_room_for_nobody() -> None:
    async with house() as h:
        h.add_worker()
        await h.bring_in("org/a")
        await h.manager.sleep("org/a")
        (asleep,) = h.told(EventKind.SLEEP)
        assert asleep.detail == {
            "displaced": ["org/a"],
            "gained": [],
            "scores": {},
            "bytes": asleep.figures["freed_bytes"],
        }
        assert h.told(EventKind.WORKER)[0].detail == {}


@virtually
async def test_kv_leases_and_workers_are_told() -> None:
    async with house() as h:
        worker = h.add_worker()
        await asyncio.sleep(0.1)
        await h.bring_in("a")
        sizes = [int(e.figures["after_bytes"]) // PAGE for e in h.told(EventKind.KV_LEASE)]
        assert sizes == [30, 20]
        worker.die()
        assert [e.reason.split()[0] for e in h.told(EventKind.WORKER)] == ["takes", "lost:"]
        assert h.told(EventKind.WORKER)[-1].figures["num_replicas"] == 1


@virtually
async def test_a_drain_and_a_sleep_for_its_own_sake() -> None:
    async with house() as h:
        h.add_worker()
        h.manager.upsert_deployment(deployment("a"))
        lease = await h.manager.acquire("a")
        sleeping = asyncio.ensure_future(h.manager.sleep("a"))
        await asyncio.sleep(1)
        assert h.told(EventKind.DRAIN)[0].figures["num_active"] == 1
        lease.release()
        await sleeping
        assert [e.reason for e in h.told(EventKind.SLEEP)] == ["asked to sleep"]
        assert h.told(EventKind.EVICT) == []


@virtually
async def test_refusals_are_told() -> None:
    async with house() as h:
        h.add_worker()
        h.manager.upsert_deployment(deployment("huge", weights_pages=40))
        with pytest.raises(InsufficientMemoryError):
            await h.manager.acquire("huge")
        h.manager.upsert_deployment(deployment("off", enabled=False))
        with pytest.raises(ModelUnavailableError):
            await h.manager.acquire("off")
        h.manager.upsert_deployment(deployment("a"))
        waiting = [asyncio.ensure_future(h.manager.acquire("a")) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError):
            await h.manager.acquire("a")
        for each in waiting:
            (await each).release()
        told = {e.deployment: e for e in h.told(EventKind.REFUSE)}
        codes = {name: event.figures["code"] for name, event in told.items()}
        assert codes == {"huge": "insufficient_memory", "off": "model_unavailable", "a": "server_overloaded"}
        assert told["huge"].figures["weights_bytes"] == 40 * PAGE
        assert told["a"].figures["num_waiting"] == 3


@virtually
async def test_failures_and_retries_are_told() -> None:
    async with house(replace(CONFIG, retry_s=1.0)) as h:
        worker = h.add_worker()
        h.manager.upsert_deployment(deployment("a"))
        worker.failing.add("load")
        with pytest.raises(ModelUnavailableError):
            await h.manager.acquire("a")
        (failure,) = h.told(EventKind.FAILURE)
        assert failure.figures["code"] == ArtifactError.code
        assert (failure.figures["num_failures"], failure.figures["retry_in_s"]) == (1, 1.0)
        assert failure.figures["while"] == "loading"
        worker.failing.clear()
        await asyncio.sleep(1.1)
        (await h.manager.acquire("a")).release()
        (retry,) = h.told(EventKind.RETRY)
        assert "after 1 failures" in retry.reason


@virtually
async def test_preemptions_are_told_as_the_worker_counts_them() -> None:
    class Preempting(SimulatedWorker):
        preemptions_total = 0

        async def stats(self) -> WorkerStats:
            usage = await super().stats()
            replicas = tuple(
                replace(each, preemptions_total=self.preemptions_total, num_running=4)
                for each in usage.replicas
                if isinstance(each, ReplicaStats)
            )
            return replace(usage, replicas=replicas)

    h = House()
    worker = Preempting(BUDGET)
    h.manager.add_worker(worker)
    await h.bring_in("a")
    await asyncio.sleep(2)
    worker.preemptions_total = 3
    await asyncio.sleep(2)
    worker.preemptions_total = 5
    await asyncio.sleep(4)
    told = [(e.figures["num_preempted"], e.figures["preemptions_total"]) for e in h.told(EventKind.PREEMPT)]
    assert told == [(3, 3), (2, 5)]
    await h.manager.stop()


@virtually
async def test_what_would_have_to_leave_is_what_then_leaves() -> None:
    async with house() as h:
        with pytest.raises(ModelNotFoundError):
            h.manager.way_in("a")
        h.add_worker()
        await asyncio.sleep(0.1)
        for name in "abc":
            h.manager.upsert_deployment(deployment(name))
        h.manager.upsert_deployment(deployment("huge", weights_pages=40))
        assert h.manager.way_in("a").verdict is Verdict.COMES
        (await h.manager.acquire("a")).release()
        assert h.manager.way_in("a").verdict is Verdict.THERE
        busy = await h.manager.acquire("b")
        await asyncio.sleep(1)
        assert h.manager.way_in("huge").verdict is Verdict.NEVER
        answer = h.manager.way_in("c")
        assert (answer.verdict, [each.deployment for each in answer.leaving]) == (Verdict.EVICTS, ["a"])
        assert answer.leaving[0].freed_bytes == 12 * PAGE
        assert h.told(EventKind.EVICT) == [], "asking moves nothing"
        lease = await h.manager.acquire("a")
        answer = h.manager.way_in("c")
        assert answer.verdict is Verdict.WAITS
        lease.release()
        (await h.manager.acquire("c")).release()
        assert [e.deployment for e in h.told(EventKind.EVICT)] == ["a"]
        busy.release()


@virtually
async def test_requests_of_high_priority_block_the_way_in() -> None:
    async with house() as h:
        h.add_worker()
        for name in "ab":
            h.manager.upsert_deployment(deployment(name, priority=10))
        h.manager.upsert_deployment(deployment("c"))
        leases = [await h.manager.acquire(name) for name in "ab"]
        for lease in leases:
            lease.note_tokens(1)
        assert h.manager.way_in("c").verdict is Verdict.BLOCKED
        for lease in leases:
            lease.release()
