"""What goes wrong half way, and what the manager makes of it."""

from __future__ import annotations

import asyncio
import math

import pytest
from support.simulated_house import BUDGET, house, virtually
from support.simulated_memory import PAGE, VirtualTimeLoop, deployment

from memory_manager.fleet.events import EventKind
from memory_manager.fleet.plan_schedule import PlanSchedule
from memory_manager.policy.residency import Residency
from memory_manager.policy.what_if import Verdict
from mooring.errors import InternalError, ModelUnavailableError


@virtually
async def test_a_sleeper_that_its_worker_will_not_forget_is_not_asked_again_and_again() -> None:
    async with house() as h:
        h.cache.budget_bytes = 10 * PAGE
        worker = h.add_worker()
        for name in "ab":
            h.manager.upsert_deployment(deployment(name))
        (await h.manager.acquire("a")).release()
        await asyncio.sleep(3)
        await h.manager.sleep("a")
        worker.failing.add("unload")
        (await asyncio.wait_for(h.manager.acquire("b"), 20)).release()
        assert len([call for call in worker.calls if call == ("unload", "a/0")]) == 1
        assert ("load from file", "b/1") in worker.calls
        worker.failing.clear()
        await h.manager.sleep("b")
        assert (h.residency("a"), h.residency("b")) == (Residency.WARM, Residency.COLD)
        await asyncio.sleep(2)
        (await h.manager.acquire("b")).release()
        assert h.residency("a") is Residency.COLD


@virtually
async def test_what_sleepers_keep_of_their_weights_is_reckoned_with_by_whoever_waits_for_room() -> None:
    async with house(cpu=31 * PAGE) as h:
        h.add_worker(budget_bytes=31 * PAGE, remains_pages=1)
        for name in "bc":
            await h.bring_in(name, weights_pages=9, kv_pages=3, min_replicas=1)
            await asyncio.sleep(0.3)
        h.manager.upsert_deployment(deployment("a", weights_pages=18, kv_pages=0))
        (await asyncio.wait_for(h.manager.acquire("a"), 30)).release()
        # That one of them alone does not make enough room is found out once of each.
        assert max(h.transitions(name).count(("resident", "warm")) for name in "bc") == 2
        assert h.owners()["weights:a/2"] == 18


@virtually
async def test_a_model_that_its_worker_would_not_let_go_comes_back_at_once_with_the_next_worker() -> None:
    async with house() as h:
        worker = h.add_worker()
        await h.bring_in("a", idle_timeout_s=1)
        worker.failing.add("sleep")
        await asyncio.sleep(60)
        worker.die()
        h.add_worker()
        await asyncio.sleep(0.1)
        began_s = asyncio.get_running_loop().time()
        (await h.manager.acquire("a")).release()
        assert asyncio.get_running_loop().time() - began_s < 1


@virtually
async def test_what_is_forgotten_for_its_host_memory_is_told() -> None:
    async with house() as h:
        h.cache.budget_bytes = 10 * PAGE
        h.add_worker()
        for name in "ab":
            await h.bring_in(name)
            await asyncio.sleep(3)
            await h.manager.sleep(name)
        (forgotten,) = h.told(EventKind.UNLOAD, of="a")
        assert "host memory" in forgotten.reason
        (dropped,) = h.told(EventKind.DROP)
        assert dropped.deployment == "a"


@virtually
async def test_those_who_waited_for_a_load_that_failed_are_told_as_refused() -> None:
    async with house() as h:
        worker = h.add_worker()
        h.manager.upsert_deployment(deployment("a"))
        worker.failing.add("load")
        waits = [asyncio.ensure_future(h.manager.acquire("a")) for _ in range(3)]
        assert all(
            isinstance(each, ModelUnavailableError)
            for each in await asyncio.gather(*waits, return_exceptions=True)
        )
        (refused,) = h.told(EventKind.REFUSE)
        assert refused.figures["num_refused"] == 3
        worker.failing.clear()
        h.manager.upsert_deployment(deployment("b"))
        waiting = asyncio.ensure_future(h.manager.acquire("b"))
        await asyncio.sleep(0)
        h.manager.upsert_deployment(deployment("b", enabled=False))
        with pytest.raises(ModelUnavailableError):
            await waiting
        assert h.told(EventKind.REFUSE)[-1].deployment == "b"


@virtually
async def test_why_a_model_cannot_come_is_said_as_it_is() -> None:
    async with house() as h:
        for name in "ab":
            h.manager.upsert_deployment(deployment(name))
        answer = h.manager.way_in("a")
        assert (answer.verdict, "no worker" in answer.message) == (Verdict.BLOCKED, True)
        h.add_worker()
        h.manager.others.set_others("cpu", 25 * PAGE, "a test")
        await asyncio.sleep(1)
        answer = h.manager.way_in("a")
        assert (answer.verdict, "other processes" in answer.message) == (Verdict.BLOCKED, True)
        h.manager.others.set_others("cpu", 0, "gone")


@virtually
async def test_a_plan_that_could_not_be_made_is_made_again() -> None:
    made = []

    def make() -> None:
        made.append(asyncio.get_running_loop().time())
        if len(made) == 1:
            raise InternalError("a bug")
        schedule.after(math.inf)

    schedule = PlanSchedule(make)
    schedule.soon()
    await asyncio.sleep(60)
    assert made == [0.0, pytest.approx(1.0, abs=0.1)]
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    assert "a bug" in loop.errors.pop()


@virtually
async def test_a_pinned_model_that_can_never_fit_is_told_once_and_fewer_replicas_keep_the_best() -> None:
    async with house(**{"cpu:0": BUDGET, "cpu:1": BUDGET}) as h:
        h.manager.upsert_deployment(deployment("huge", weights_pages=40, pinned=True))
        h.manager.upsert_deployment(deployment("a", max_replicas=2))
        h.add_worker("cpu:0")
        h.add_worker("cpu:1")
        waiting = asyncio.ensure_future(h.manager.acquire("a"))
        await asyncio.sleep(0.1)
        assert h.residency("a") is Residency.LOADING
        h.manager.upsert_deployment(deployment("a", max_replicas=1))
        (await waiting).release()
        assert len(h.told(EventKind.LOAD, of="a")) == 1, "the one on its way was not given up"
        assert [e.figures["num_refused"] for e in h.told(EventKind.REFUSE, of="huge")] == [0]


@virtually
async def test_a_sleeper_goes_on_being_forgotten_when_the_worker_that_wanted_its_memory_dies() -> None:
    async with house(**{"cpu:0": BUDGET, "cpu:1": BUDGET}) as h:
        h.cache.budget_bytes = 10 * PAGE
        first = h.add_worker("cpu:0")
        for name in "ab":
            h.manager.upsert_deployment(deployment(name))
        (await h.manager.acquire("a")).release()
        await h.manager.sleep("a")
        h.manager.others.set_others("cpu:0", BUDGET - 5 * PAGE, "so that b goes to the other device")
        await asyncio.sleep(1)
        second = h.add_worker("cpu:1")
        waiting = asyncio.ensure_future(h.manager.acquire("b"))
        while ("unload", "a/0") not in first.calls:  # noqa: ASYNC110
            await asyncio.sleep(0.0002)
        second.die()
        await asyncio.sleep(0.1)
        waiting.cancel()
        h.manager.others.set_others("cpu:0", 0, "gone")
        (await h.manager.acquire("a")).release()
        assert h.told(EventKind.FAILURE, of="a") == []


@virtually
async def test_a_load_that_can_have_no_host_copy_costs_no_sleeper_its_own() -> None:
    async with house() as h:
        h.add_worker()
        for name in "ab":
            h.manager.upsert_deployment(deployment(name))
        (await h.manager.acquire("a")).release()
        await h.manager.sleep("a")
        h.cache.budget_bytes = 19 * PAGE
        h.manager.upsert_deployment(deployment("large", weights_pages=20))
        (await h.manager.acquire("large")).release()
        await h.manager.sleep("large")
        assert h.residency("large") is Residency.COLD
        h.cache.budget_bytes, h.cache.starved = 100 * PAGE, True
        with pytest.raises(ModelUnavailableError, match="no host memory"):
            await h.manager.acquire("b")
        assert h.told(EventKind.UNLOAD, of="a") == []
        assert h.residency("a") is Residency.WARM
        h.cache.starved = False
        await asyncio.sleep(2)
        (await h.manager.acquire("b")).release()


@virtually
async def test_a_load_that_died_with_its_worker_is_told_with_that_worker() -> None:
    async with house() as h:
        worker = h.add_worker()
        h.manager.upsert_deployment(deployment("a"))
        waiting = asyncio.ensure_future(h.manager.acquire("a"))
        await asyncio.sleep(0.1)
        worker.die()
        (failure,) = h.told(EventKind.FAILURE)
        assert (failure.worker_id, failure.figures["while"]) == ("worker-cpu", "loading")
        h.add_worker()
        (await waiting).release()


@virtually
async def test_a_model_whose_host_copy_was_altered_is_loaded_anew() -> None:
    async with house() as h:
        worker = h.add_worker()
        await h.bring_in("a")
        await h.manager.sleep("a")
        worker.altered.add("wake")
        (await h.manager.acquire("a")).release()
        assert h.cache.num_discarded == 1
        assert [call for call in worker.calls if call[1] == "a/0"] == [
            *(("load", "a/0"), ("sleep", "a/0"), ("wake", "a/0"), ("unload", "a/0"), ("load", "a/0"))
        ]
        assert ("waking", "cold") in h.transitions("a")


@virtually
async def test_a_model_whose_first_load_finds_its_host_copy_altered_is_loaded_again() -> None:
    async with house() as h:
        worker = h.add_worker()
        worker.altered.add("load")
        await h.bring_in("a")
        assert h.transitions("a")[:2] == [("cold", "loading"), ("loading", "cold")]
        assert h.residency("a") is Residency.RESIDENT
