"""The host tier as the manager keeps it: loads come whatever it holds, and copies go that are least of use."""

from __future__ import annotations

import asyncio

from support.simulated_house import House, house, virtually
from support.simulated_memory import PAGE, deployment

from memory_manager.fleet.events import EventKind
from memory_manager.policy.residency import Residency

ROOMY = {"cpu": 50 * PAGE}  # four deployments of 10 + 2 fit


def loads(h: House) -> list[tuple[str, str]]:
    return [(verb, name[0]) for verb, name in h.workers[0].calls if verb.startswith("load")]


@virtually
async def test_residents_copies_go_for_those_of_others_the_longest_unused_first() -> None:
    async with house(**ROOMY) as h:
        h.cache.budget_bytes = 25 * PAGE
        worker = h.add_worker(budget_bytes=50 * PAGE)
        for name in "abc":
            await h.bring_in(name)
            await asyncio.sleep(1)
        assert [h.residency(name) for name in "abc"] == [Residency.RESIDENT] * 3
        (dropped,) = h.told(EventKind.DROP)
        assert (dropped.deployment, dropped.figures["wanted_bytes"]) == ("a", 10 * PAGE)
        assert loads(h) == [("load", name) for name in "abc"]
        for name in "abc":
            await h.manager.sleep(name)
        # It had no copy to wake from.
        assert [h.residency(name) for name in "abc"] == [Residency.COLD, Residency.WARM, Residency.WARM]
        assert [call for call in worker.calls if call[0] in ("sleep", "unload")] == [
            ("unload", "a/0"),
            ("sleep", "b/1"),
            ("sleep", "c/2"),
        ]


@virtually
async def test_two_loads_at_once_both_come_if_there_is_host_memory_for_one() -> None:
    async with house(**ROOMY) as h:
        h.cache.budget_bytes = 10 * PAGE
        h.add_worker(budget_bytes=50 * PAGE)
        for name in "ab":
            h.manager.upsert_deployment(deployment(name))
        for ticket in await asyncio.gather(*(h.manager.acquire(name) for name in "ab")):
            ticket.release()
        assert sorted(loads(h)) == [("load", "a"), ("load from file", "b")]
        assert h.told(EventKind.FAILURE) == []


@virtually
async def test_a_copy_that_is_the_resident_weights_stays_and_the_next_model_comes_from_its_file() -> None:
    async with house(**ROOMY) as h:
        h.cache.budget_bytes = 10 * PAGE
        h.add_worker(budget_bytes=50 * PAGE, maps_host_copy=True)
        await h.bring_in("a")
        await h.bring_in("b")
        assert loads(h) == [("load", "a"), ("load from file", "b")]
        for name in "ab":
            await h.manager.sleep(name)
        assert [h.residency(name) for name in "ab"] == [Residency.WARM, Residency.COLD]
        await h.bring_in("b")  # asleep, the other one gives its copy up
        assert [h.residency(name) for name in "ab"] == [Residency.COLD, Residency.RESIDENT]
        assert loads(h)[-1] == ("load", "b")


@virtually
async def test_one_copy_serves_all_replicas_and_goes_when_all_can_do_without() -> None:
    async with house(**{"cpu:0": 40 * PAGE, "cpu:1": 40 * PAGE}) as h:
        h.cache.budget_bytes = 15 * PAGE
        for device in ("cpu:0", "cpu:1"):
            h.add_worker(device, budget_bytes=40 * PAGE)
        await h.bring_in("a", min_replicas=2, max_replicas=2)
        await asyncio.sleep(3)
        assert (h.cache.pins, h.cache.free_bytes) == ({"artifact-a": 2}, 5 * PAGE)
        await h.bring_in("b")
        assert len(h.told(EventKind.DROP, of="a")) == 2
        assert h.cache.pins == {"artifact-b": 1}


@virtually
async def test_a_worker_that_will_not_let_a_copy_go_holds_up_nobody() -> None:
    async with house(**ROOMY) as h:
        h.cache.budget_bytes = 10 * PAGE
        worker = h.add_worker(budget_bytes=50 * PAGE)
        await h.bring_in("a")
        worker.failing.add("drop_host_copy")
        await h.bring_in("b")
        assert loads(h) == [("load", "a"), ("load from file", "b")]
        worker.failing.clear()
        await h.manager.sleep("a")
        assert h.residency("a") is Residency.WARM


@virtually
async def test_what_an_eviction_costs_counts_a_dropped_copy_as_a_load() -> None:
    async with house(**ROOMY) as h:
        h.add_worker(budget_bytes=50 * PAGE)
        await h.bring_in("a")
        await h.manager.sleep("a")
        await h.bring_in("a")
        (a,) = h.manager._deployments.values()
        assert a.wake_s == a.reload_s(h.manager._config)
        h.manager.others.give_up_copies(10 * PAGE)
        await asyncio.sleep(1)
        assert h.residency("a") is Residency.RESIDENT
        assert a.reload_s(h.manager._config) == a.load_s > a.wake_s


@virtually
async def test_a_sleeper_that_is_woken_in_the_same_plan_keeps_its_copy() -> None:
    async with house(**ROOMY) as h:
        h.cache.budget_bytes = 10 * PAGE
        h.add_worker(budget_bytes=50 * PAGE)
        await h.bring_in("a")
        await h.manager.sleep("a")
        h.manager.upsert_deployment(deployment("b"))
        both = await asyncio.gather(*(h.manager.acquire(name) for name in "ba"))
        for ticket in both:
            ticket.release()
        assert loads(h) == [("load", "a"), ("load from file", "b")]
        assert h.told(EventKind.UNLOAD) == []
