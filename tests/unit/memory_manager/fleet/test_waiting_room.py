"""The order in which those who wait are given a replica, and what their tickets hold."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from support.simulated_house import CONFIG, house, virtually
from support.simulated_memory import deployment

from memory_manager.fleet.records import Deployment
from memory_manager.policy.residency import Residency


@virtually
async def test_a_replica_is_given_by_priority_and_then_by_arrival() -> None:
    async with house(replace(CONFIG, max_waiting_requests=10)) as h:
        h.add_worker()
        h.manager.upsert_deployment(deployment("a"))
        served: list[str] = []

        async def ask(name: str, priority: int) -> None:
            with await h.manager.acquire("a", priority=priority):
                served.append(name)

        async with asyncio.TaskGroup() as asking:
            for name, priority in (("one", 0), ("two", 5), ("three", -1), ("four", 5), ("five", 0)):
                asking.create_task(ask(name, priority))
        assert served == ["two", "four", "one", "five", "three"]


@virtually
async def test_a_ticket_holds_the_target_of_its_request_or_the_planners_own() -> None:
    async with house() as h:
        h.add_worker()
        h.manager.upsert_deployment(deployment("a"))
        waited = await h.manager.acquire("a", tpot_target_s=0.5)
        at_once = await h.manager.acquire("a", tpot_target_s=0.25)
        usual = await h.manager.acquire("a")
        targets_s = [each.tpot_target_s for each in (waited, at_once, usual)]
        assert targets_s == [0.5, 0.25, CONFIG.tpot_target_s]
        for each in (waited, at_once, usual):
            each.release()


@virtually
async def test_those_that_wait_and_those_that_are_parked_count_by_the_highest_priority_among_them() -> None:
    async with house() as h:
        h.add_worker()
        for name in "ab":
            h.manager.upsert_deployment(deployment(name, weights_pages=20))
        parked = [await h.manager.acquire("a", priority=each) for each in (-2, 3, 1)]
        (a,) = (each for each in h.manager._deployments.values() if each.spec.name == "a")
        assert a.demand() is None
        with await h.manager.acquire("b"):
            assert h.residency("a") is Residency.WARM
            waiting = asyncio.create_task(h.manager.acquire("a", priority=5))
            await asyncio.sleep(0)
            assert priority_of(a) == 5
            waiting.cancel()
            await asyncio.wait([waiting])
            for ticket, left in ((parked[1], 1), (parked[2], -2)):
                assert priority_of(a) == ticket.priority
                ticket.release()
                assert priority_of(a) == left
        parked[0].release()


def priority_of(deployment: Deployment) -> int | None:
    demand = deployment.demand()
    return None if demand is None else demand.priority
