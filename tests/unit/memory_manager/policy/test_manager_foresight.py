"""Models woken ahead of their requests and replicas that follow the load, on virtual time."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest
from support.simulated_house import BUDGET, CONFIG, House, house, virtually
from support.simulated_memory import deployment

from memory_manager.fleet.events import EventKind
from memory_manager.policy.residency import Residency

NO_PREWAKE = replace(CONFIG, prewake=False)
PERIOD_S = 60.0


async def waited_s(h: House, name: str) -> float:
    """How long one short request waits for its model."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    lease = await h.manager.acquire(name)
    waited = loop.time() - began_s
    await asyncio.sleep(0.2)
    lease.release()
    return waited


async def periodic(h: House, name: str, num_rounds: int) -> list[float]:
    """One request a minute; the waits."""
    waits = []
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    for number in range(num_rounds):
        await asyncio.sleep(began_s + number * PERIOD_S - loop.time())
        waits.append(await waited_s(h, name))
    return waits


@virtually
async def test_periodic_requests_find_their_model_awake() -> None:
    async with house() as h:
        h.add_worker()
        h.manager.upsert_deployment(deployment("a", idle_timeout_s=5))
        waits = await periodic(h, "a", 12)
        assert min(waits[:5]) > 0.09, "it slept, and nothing was known yet"
        assert max(waits[5:]) == 0
        ahead = [e for e in h.told(EventKind.WAKE) if "expected" in e.reason]
        assert len(ahead) >= 7
        await asyncio.sleep(5 * PERIOD_S)
        assert h.residency("a") is Residency.WARM, "what stopped coming is waited for no longer"


@virtually
async def test_nothing_is_woken_ahead_where_that_is_turned_off() -> None:
    async with house(NO_PREWAKE) as h:
        h.add_worker()
        h.manager.upsert_deployment(deployment("a", idle_timeout_s=5))
        assert min(await periodic(h, "a", 10)) > 0.09


@virtually
async def test_random_requests_are_not_foreseen_and_do_not_thrash() -> None:
    draw = random.Random(5)
    async with house() as h:
        h.add_worker()
        for name in "abc":
            h.manager.upsert_deployment(deployment(name, idle_timeout_s=5))

        async def client(name: str) -> int:
            for _ in range(30):
                await asyncio.sleep(draw.expovariate(1 / PERIOD_S))
                await waited_s(h, name)
            return 30

        num_requests = sum(await asyncio.gather(*map(client, "abc")))
        wakes = h.told(EventKind.LOAD, EventKind.WAKE)
        ahead = [e for e in wakes if "expected" in e.reason]
        assert len(ahead) <= 0.05 * num_requests
        assert len(wakes) <= num_requests + len(ahead)


@virtually
async def test_what_is_expected_never_displaces_a_busy_model() -> None:
    async with house() as h:
        h.add_worker()
        for name in "abc":
            h.manager.upsert_deployment(deployment(name))
        await periodic(h, "c", 6)
        busy = [await h.manager.acquire(name) for name in "ab"]
        assert h.residency("c") is Residency.WARM
        evicted = len(h.told(EventKind.EVICT, EventKind.DRAIN))
        await asyncio.sleep(PERIOD_S)
        assert len(h.told(EventKind.EVICT, EventKind.DRAIN)) == evicted
        for lease in busy:
            lease.release()


@virtually
async def test_what_is_expected_takes_the_place_of_what_nobody_wants() -> None:
    async with house() as h:
        h.add_worker()
        for name in "abc":
            h.manager.upsert_deployment(deployment(name))
        await periodic(h, "c", 6)
        await asyncio.sleep(5)
        for name in "ab":  # nobody has asked for them in a long time, and nobody does again
            await waited_s(h, name)
        if h.residency("c") is not Residency.WARM:
            pytest.fail("there is room for two")
        await asyncio.sleep(PERIOD_S - 6)
        assert h.residency("c") is Residency.RESIDENT
        (evicted,) = [e for e in h.told(EventKind.EVICT) if e.figures["room_for"] == "c"]
        assert float(evicted.figures["loss"]) < float(evicted.figures["gain"]) < 0.1


@virtually
async def test_what_is_soon_expected_is_kept_before_what_is_not() -> None:
    """Both have been asked for as often; the one with a rhythm is due, so the other goes."""
    async with house() as h:
        h.add_worker()
        for name in "abc":
            h.manager.upsert_deployment(deployment(name))
        at_random = random.Random(1)

        async def irregular() -> None:
            for _ in range(7):
                await asyncio.sleep(at_random.uniform(10, 90))
                await waited_s(h, "b")

        await asyncio.gather(periodic(h, "a", 8), irregular())
        while h.residency("b") is not Residency.RESIDENT:
            await waited_s(h, "b")
        await waited_s(h, "c")
        assert (h.residency("a"), h.residency("b")) == (Residency.RESIDENT, Residency.WARM)


@virtually
async def test_replicas_come_with_the_load_and_go_with_it() -> None:
    config = replace(
        CONFIG,
        requests_per_replica=2,
        scale_up_after_s=0.5,
        scale_down_after_s=3.0,
    )
    async with house(config, **{"cpu:0": BUDGET, "cpu:1": BUDGET}) as h:
        workers = [h.add_worker("cpu:0"), h.add_worker("cpu:1")]
        h.manager.upsert_deployment(deployment("a", max_replicas=2))
        first = [await h.manager.acquire("a") for _ in range(2)]
        await asyncio.sleep(3)
        assert sum(bool(each.held) for each in workers) == 1, "two are not too many"
        second = [await h.manager.acquire("a") for _ in range(2)]
        await asyncio.sleep(3)
        assert all(each.held for each in workers)
        assert "more than" in h.told(EventKind.LOAD)[-1].reason
        third = [await h.manager.acquire("a") for _ in range(4)]
        assert sorted(each.worker_id for each in [*first, *second, *third]) == (
            ["worker-cpu:0"] * 4 + ["worker-cpu:1"] * 4
        )
        for lease in [*first, *second, *third]:
            lease.release()
        await asyncio.sleep(10)
        assert sum(each.weights_bytes > 0 for each in workers) == 1
        (slept,) = h.told(EventKind.SLEEP)
        assert slept.reason == "the load asks for 1 replicas"


@virtually
async def test_a_second_replica_takes_no_room_from_what_is_in_use() -> None:
    config = replace(CONFIG, requests_per_replica=1, scale_up_after_s=0.1)
    async with house(config, **{"cpu:0": BUDGET // 2, "cpu:1": BUDGET // 2}) as h:
        h.add_worker("cpu:0", BUDGET // 2)
        h.add_worker("cpu:1", BUDGET // 2)
        for name in "ab":
            h.manager.upsert_deployment(deployment(name, max_replicas=2))
        leases = [await h.manager.acquire(name) for name in "ab"]
        more = [await h.manager.acquire("a") for _ in range(5)]
        await asyncio.sleep(10)
        assert h.told(EventKind.DRAIN, EventKind.EVICT) == []
        for lease in [*leases, *more]:
            lease.release()
