"""A device's budget that shrinks for other processes and comes back: what gives way, in which order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from support.simulated_house import BUDGET, house, virtually
from support.simulated_memory import PAGE, SimulatedWorker, deployment

from memory_manager.fleet.events import EventKind
from memory_manager.fleet.ledger import Ledger, Owner
from memory_manager.policy.residency import Residency
from memory_manager.ports import LeaseStatus
from mooring.errors import InternalError


def test_a_claim_is_filled_by_what_comes_free_and_never_by_what_is_leased() -> None:
    ledger = Ledger("cpu", 10 * PAGE)
    assert ledger.grant(Owner("kv", "w"), 8 * PAGE)
    ledger.set_others(5 * PAGE - 1)
    assert (ledger.others_bytes, ledger.free_bytes) == (5 * PAGE, 0)
    assert ledger.owners() == {Owner("kv", "w"): 8 * PAGE, Owner("others"): 2 * PAGE}
    assert not ledger.grant(Owner("weights", "a"), PAGE)
    ledger.shrink(Owner("kv", "w"), 4 * PAGE)
    assert ledger.owners() == {Owner("kv", "w"): 4 * PAGE, Owner("others"): 5 * PAGE}
    assert ledger.free_bytes == PAGE
    ledger.check()
    ledger.set_others(0)
    assert ledger.free_bytes == 6 * PAGE
    ledger.set_others(99 * PAGE)
    assert ledger.others_bytes == 10 * PAGE
    with pytest.raises(InternalError):
        ledger.shrink(Owner("kv", "w"), -1)


@virtually
async def test_kv_gives_way_before_any_model_sleeps() -> None:
    async with house() as h:
        worker = h.add_worker()
        await h.bring_in("a")
        h.manager.others.set_others("cpu", 15 * PAGE, "a test")
        await asyncio.sleep(2)
        assert h.residency("a") is Residency.RESIDENT
        assert h.owners()["others"] == 15
        assert worker.kv_bytes == 5 * PAGE
        assert ("set_memory_limit", str(15 * PAGE)) in worker.calls
        (told,) = h.told(EventKind.BUDGET)
        assert (told.figures["before_bytes"], told.figures["after_bytes"]) == (BUDGET, 15 * PAGE)
        h.manager.others.set_others("cpu", 0, "gone again")
        await asyncio.sleep(2)
        assert worker.kv_bytes == 20 * PAGE


@virtually
async def test_the_idle_model_that_is_worth_least_sleeps_for_the_rest() -> None:
    async with house() as h:
        h.add_worker()
        h.manager.upsert_deployment(deployment("busy"))
        await h.bring_in("idle")
        for _ in range(20):
            (await h.manager.acquire("busy")).release()
        h.manager.others.set_others("cpu", 10 * PAGE, "a test")
        await asyncio.sleep(4)
        assert (h.residency("busy"), h.residency("idle")) == (Residency.RESIDENT, Residency.WARM)
        assert h.owners()["others"] == 10
        assert "other processes want" in next(
            e.reason for e in h.events if e.deployment == "idle" and e.after is Residency.WARM
        )


@virtually
async def test_a_request_waits_for_others_to_go_and_is_not_refused() -> None:
    async with house() as h:
        h.add_worker()
        h.manager.upsert_deployment(deployment("a"))
        h.manager.others.set_others("cpu", 25 * PAGE, "a test")
        waiting = asyncio.ensure_future(h.manager.acquire("a"))
        await asyncio.sleep(5)
        assert not waiting.done()
        h.manager.others.set_others("cpu", 0, "gone again")
        (await waiting).release()


@virtually
async def test_pinned_models_stay_and_others_get_what_there_is() -> None:
    async with house() as h:
        h.add_worker()
        h.manager.upsert_deployment(deployment("a", pinned=True))
        await asyncio.sleep(1)
        h.manager.others.set_others("cpu", 25 * PAGE, "a test")
        await asyncio.sleep(4)
        assert h.residency("a") is Residency.RESIDENT
        assert h.owners()["others"] == 30 - 10 - 2 - 1  # all but the weights and the KV that it was promised
        h.manager.others.set_others("cpu", 0, "gone again")


@virtually
async def test_a_busy_model_sleeps_too_and_a_new_worker_knows_the_limit() -> None:
    async with house() as h:
        worker = h.add_worker()
        h.manager.upsert_deployment(deployment("a"))
        lease = await h.manager.acquire("a")
        h.manager.others.set_others("cpu", 25 * PAGE, "a test")
        await asyncio.sleep(3)  # its minimum residency
        assert h.residency("a") is Residency.WARM
        lease.release()
        worker.die()
        again = h.add_worker()
        await asyncio.sleep(1)
        assert ("set_memory_limit", str(5 * PAGE)) in again.calls
        h.manager.others.set_others("cpu", 0, "gone again")


@virtually
async def test_host_copies_go_where_the_host_is_short_the_longest_unused_first() -> None:
    async with house() as h:
        worker = h.add_worker()
        for name in "abc":
            await h.bring_in(name)
            await asyncio.sleep(3)
        for name in "ab":
            await h.manager.sleep(name)
        h.manager.others.give_up_copies(3 * PAGE)
        await asyncio.sleep(1)
        assert [h.residency(name) for name in "abc"] == [Residency.COLD, Residency.WARM, Residency.RESIDENT]
        assert "a/0" not in worker.held
        (told,) = h.told(EventKind.DROP)
        assert told.deployment == "a"
        h.manager.others.give_up_copies(99 * PAGE)
        await asyncio.sleep(1)
        assert [h.residency(name) for name in "abc"] == [Residency.COLD, Residency.COLD, Residency.RESIDENT]
        (await h.manager.acquire("a")).release()


@virtually
async def test_a_worker_that_will_not_forget_a_sleeper_or_dies_over_it_keeps_nothing() -> None:
    async with house() as h:
        worker = h.add_worker()
        for name in "ab":
            await h.bring_in(name)
            await asyncio.sleep(3)
            await h.manager.sleep(name)
        worker.failing.add("unload")
        h.manager.others.give_up_copies(PAGE)
        await asyncio.sleep(0.1)
        h.manager.others.give_up_copies(PAGE)
        await asyncio.sleep(0.1)
        assert [call for call in worker.calls if call[0] == "unload"] == [
            ("unload", "a/0"),
            ("unload", "b/1"),
        ]
        worker.failing.clear()
        await asyncio.sleep(2)
        h.manager.others.give_up_copies(PAGE)
        await asyncio.sleep(0)
        worker.die()
        h.add_worker()
        for name in "ab":
            (await h.manager.acquire(name)).release()


class _Pressed(SimulatedWorker):
    """Calls ``press`` when its KV has shrunk: just before the plan that wakes what waited for that."""

    press: Callable[[], None] | None = None

    async def set_lease(self, kv_bytes: int, revision: int) -> LeaseStatus:
        status = await super().set_lease(kv_bytes, revision)
        if self.press is not None and status is LeaseStatus.APPLIED:
            asyncio.get_running_loop().call_soon(self.press)
            self.press = None
        return status


@virtually
async def test_a_sleeper_that_gives_its_copy_up_is_not_woken_under_it() -> None:
    async with house() as h:
        worker = _Pressed(BUDGET)
        h.manager.add_worker(worker)
        h.workers.append(worker)
        await h.bring_in("a")
        await h.manager.sleep("a")
        await asyncio.sleep(1)
        worker.press = lambda: h.manager.others.give_up_copies(PAGE)
        (await h.manager.acquire("a")).release()
        assert [verb for verb, name in worker.calls if name == "a/0"] == ["load", "sleep", "unload", "load"]
