"""A worker that is to leave gives up all that it has, and others take it over."""

import asyncio

from support.simulated_house import house, virtually
from support.simulated_memory import PAGE, deployment

from memory_manager.policy.residency import Residency


@virtually
async def test_a_drained_worker_holds_no_replica_awake_or_asleep() -> None:
    async with house(a=30 * PAGE, b=30 * PAGE) as h:
        worker = h.add_worker("a")
        await h.bring_in("sleeper")
        await h.manager.sleep("sleeper")
        await h.bring_in("idle")
        await h.manager.drain_worker("worker-a", within_s=10)
        assert worker.held == {}
        assert h.residency("sleeper") is Residency.WARM, "its copy is in the host cache still"
        assert [each.name for each in h.manager.snapshot().deployments] == ["sleeper", "idle"]
        h.add_worker("b")
        with await h.manager.acquire("sleeper") as ticket:
            assert ticket.worker_id == "worker-b"


@virtually
async def test_requests_have_their_time_and_those_behind_them_do_not_wait_for_all_of_it() -> None:
    async with house(a=30 * PAGE, b=30 * PAGE) as h:
        loop = asyncio.get_running_loop()
        h.add_worker("a")
        h.manager.upsert_deployment(deployment("m"))
        running = await h.manager.acquire("m")
        h.add_worker("b")
        began_s = loop.time()
        draining = asyncio.create_task(h.manager.drain_worker("worker-a", within_s=60))
        await asyncio.sleep(10)
        assert h.residency("m") is Residency.DRAINING
        waited_from_s = loop.time()
        with await h.manager.acquire("m") as ticket:
            assert ticket.worker_id == "worker-b"
            assert loop.time() - waited_from_s < 1, "it has drained for longer than others are kept waiting"
        await draining
        assert loop.time() - began_s < 12
        running.release()


@virtually
async def test_a_worker_that_is_gone_is_drained() -> None:
    async with house(a=30 * PAGE) as h:
        worker = h.add_worker("a")
        await h.manager.drain_worker("no such worker", within_s=1)
        h.manager.upsert_deployment(deployment("m"))
        running = await h.manager.acquire("m")
        draining = asyncio.create_task(h.manager.drain_worker("worker-a", within_s=60))
        await asyncio.sleep(1)
        assert not draining.done()
        worker.die()
        await draining
        running.release()
