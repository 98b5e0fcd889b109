"""What the manager does with workers whose engines can do less."""

from __future__ import annotations

import asyncio

from support.simulated_house import House, house, virtually
from support.simulated_memory import PAGE

from memory_manager.fleet.events import EventKind
from memory_manager.policy.residency import Residency
from memory_manager.ports import WarmPlace


def moves(h: House) -> list[str]:
    return [verb for verb, _ in h.workers[0].calls if verb in ("load", "sleep", "wake", "unload")]


@virtually
async def test_an_engine_that_cannot_sleep_unloads_and_loads_again() -> None:
    async with house() as h:
        h.add_worker(sleep=False)
        await h.bring_in("a")
        await h.manager.sleep("a")
        assert h.residency("a") is Residency.WARM, "the host cache has it still"
        (await h.manager.acquire("a")).release()
        assert moves(h) == ["load", "unload", "load"]
        for name in "bc":
            await asyncio.sleep(1)
            await h.bring_in(name)
        assert len(h.told(EventKind.EVICT)) == 1


@virtually
async def test_an_engine_that_is_warm_by_itself_needs_no_host_copy_to_wake() -> None:
    async with house() as h:
        h.add_worker(warm=WarmPlace.WORKER)
        await h.bring_in("a")
        assert not h.cache.pins, "the copy was on the way only"
        h.cache.copies.clear()
        await h.manager.sleep("a")
        assert h.residency("a") is Residency.WARM
        (await h.manager.acquire("a")).release()
        assert moves(h) == ["load", "sleep", "wake"]


@virtually
async def test_what_is_warm_nowhere_is_cold_once_the_cache_has_let_it_go() -> None:
    async with house() as h:
        h.add_worker(sleep=False, warm=WarmPlace.NOWHERE)
        await h.bring_in("a")
        h.cache.copies.clear()
        await h.manager.sleep("a")
        assert h.residency("a") is Residency.COLD


@virtually
async def test_a_fixed_kv_lease_stays_from_load_to_unload() -> None:
    async with house() as h:
        h.add_worker(sleep=False, elastic_kv=False)
        await h.bring_in("a", kv_pages=4)
        assert h.owners()["kv:worker-cpu"] == 5
        await h.bring_in("b", kv_pages=3)
        assert h.owners()["kv:worker-cpu"] == 8
        told = [int(value) // PAGE for verb, value in h.workers[0].calls if verb == "set_lease"]
        assert told == [5, 8]
