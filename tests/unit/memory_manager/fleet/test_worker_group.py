"""A replica on several workers: all of them hold their shares of it, or none does."""

from __future__ import annotations

import asyncio

import pytest
from support.simulated_group import SHARE_PAGES, GroupHouse
from support.simulated_house import virtually
from support.simulated_memory import PAGE, run_virtually

from memory_manager.fleet.ledger import Owner
from memory_manager.policy.plan_types import Sleep, Unload, Wake
from memory_manager.policy.residency import Residency
from mooring.errors import InternalError


def calls(house: GroupHouse, verb: str) -> list[int]:
    """How often each worker was called, by rank."""
    return [sum(name == verb for name, _ in each.calls) for each in house.workers.values()]


@virtually
async def test_every_member_holds_a_share_and_the_first_takes_the_requests() -> None:
    house = GroupHouse(["d0", "d1"])
    await house.bring()
    assert [each.weights_bytes for each in house.workers.values()] == [SHARE_PAGES * PAGE] * 2
    with await house.manager.acquire("a") as ticket:
        assert ticket.worker_id == "rank-0"
    await house.move(Sleep)
    assert house.replica.residency is Residency.WARM
    assert house.replica.lease_bytes == 0
    await house.move(Wake)
    assert house.replica.lease_bytes == SHARE_PAGES * PAGE
    await house.move(Unload)
    house.check_gone()
    await house.stop()


@virtually
async def test_the_figures_of_a_replica_are_its_first_member_s_and_every_member_is_audited() -> None:
    house = GroupHouse(["d0", "d1"])
    await house.bring()
    house.workers["rank-0"].num_queued = 3
    house.workers["rank-1"].num_queued = 7
    await asyncio.sleep(5)
    assert house.replica.stats.num_queued == 3
    assert house.manager.snapshot().num_ledger_mismatches == 0
    assert [house.manager.others.held_bytes(name) for name in ("d0", "d1")] == [SHARE_PAGES * PAGE] * 2
    await house.stop()


@virtually
async def test_members_on_one_device_hold_a_share_each() -> None:
    house = GroupHouse(["d0", "d0"])
    await house.bring()
    owners = house.manager.snapshot().devices[0].owners
    assert owners["weights:a/0"] == 2 * SHARE_PAGES * PAGE
    assert house.replica.lease_bytes == SHARE_PAGES * PAGE
    await house.stop()


@virtually
async def test_a_ledger_without_room_leaves_those_of_the_others_as_they_were() -> None:
    house = GroupHouse(["d0", "d1", "d2"])
    house.manager._ledgers["d1"].grant(Owner("kv", "others"), (30 - SHARE_PAGES + 1) * PAGE)
    with pytest.raises(InternalError, match="no room"):
        await house.bring()
    house.check_gone()
    assert house.replica.residency is Residency.COLD
    assert calls(house, "load") == [0, 0, 0]
    await house.stop()


@virtually
async def test_a_load_that_fails_on_one_member_is_undone_on_all() -> None:
    house = GroupHouse(["d0", "d1", "d2"])
    house.failing("load", 1)
    await house.bring()
    assert house.replica.residency is Residency.FAILED
    assert house.replica.state.reason == "load of a/0 failed"
    assert calls(house, "load") == calls(house, "unload") == [1, 1, 1]
    house.check_gone()
    house.failing("load")
    await house.bring()
    assert house.replica.residency is Residency.RESIDENT
    await house.stop()


@virtually
async def test_a_load_that_cannot_be_undone_stays_leased_on_all_members_until_it_is() -> None:
    house = GroupHouse(["d0", "d1"])
    house.failing("load", 0)
    house.failing("unload", 1)
    await house.bring()
    assert house.replica.residency is Residency.FAILED
    assert house.replica.lease_bytes == SHARE_PAGES * PAGE
    house.check()
    house.failing("unload")
    await house.move(Unload)
    house.check_gone()
    await house.stop()


@virtually
async def test_an_altered_host_copy_is_discarded_whichever_member_finds_it() -> None:
    house = GroupHouse(["d0", "d1"])
    house.failing("load", 0)
    list(house.workers.values())[1].altered.add("load")
    await house.bring()
    assert house.cache.num_discarded == 1
    assert house.replica.residency is Residency.COLD
    house.check_gone()
    await house.stop()


@virtually
async def test_a_wake_that_fails_on_one_member_puts_all_back_to_sleep() -> None:
    house = GroupHouse(["d0", "d1"], remains_pages=1)
    await house.bring()
    await house.move(Sleep)
    house.failing("wake", 1)
    await house.move(Wake)
    assert house.replica.residency is Residency.WARM
    assert [each.weights_bytes for each in house.workers.values()] == [PAGE, PAGE]
    assert house.replica.lease_bytes == PAGE
    house.check()
    await house.stop()


@virtually
async def test_a_sleep_that_fails_on_one_member_wakes_all_again() -> None:
    house = GroupHouse(["d0", "d1"])
    await house.bring()
    house.failing("sleep", 1)
    await house.move(Sleep)
    assert house.replica.residency is Residency.RESIDENT
    assert [each.weights_bytes for each in house.workers.values()] == [SHARE_PAGES * PAGE] * 2
    await house.stop()


@pytest.mark.parametrize("action", [Sleep, Unload])
def test_what_only_some_members_let_go_has_failed_and_is_unloaded_from_all(
    action: type[Sleep | Unload],
) -> None:
    async def main() -> None:
        house = GroupHouse(["d0", "d1"])
        await house.bring()
        house.failing("sleep", 1)
        house.failing("wake", 0)
        house.failing("unload", 1)
        await house.move(action)
        assert house.replica.residency is Residency.FAILED
        assert house.replica.lease_bytes == SHARE_PAGES * PAGE
        await house.move(Unload)
        assert house.replica.residency is Residency.FAILED
        house.check()
        house.failing("unload")
        await house.move(Unload)
        house.check_gone()
        await house.stop()

    run_virtually(main)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("asleep", [False, True])
def test_the_death_of_a_member_ends_the_replica_and_the_plan_clears_the_others(
    asleep: bool, rank: int
) -> None:
    async def main() -> None:
        house = GroupHouse(["d0", "d1"])
        await house.bring()
        if asleep:
            await house.move(Sleep)
        lease_bytes = house.replica.lease_bytes
        dead, left = (list(house.workers.values())[each] for each in (rank, 1 - rank))
        dead.die()
        await asyncio.sleep(0.015)
        assert house.replica.residency is Residency.FAILED
        assert house.replica.worker_id == left.worker_id
        assert house.replica.lease_bytes == lease_bytes
        house.check()
        house.manager.replan()
        await house.settle()
        assert calls(house, "unload")[1 - rank] == 1
        house.check_gone()
        await house.stop()

    run_virtually(main)


@pytest.mark.parametrize("dies_at_s", [0.12, 0.195])
def test_a_member_that_dies_during_a_load_that_fails_counts_as_one_failure_of_it(dies_at_s: float) -> None:
    async def main() -> None:
        house = GroupHouse(["d0", "d1"])
        house.failing("load", 0)
        house.loop.call_later(dies_at_s, house.workers["rank-1"].die)
        await house.bring()
        assert house.replica.residency is Residency.FAILED
        assert house.replica.num_failures == 1
        assert house.replica.lease_bytes == SHARE_PAGES * PAGE
        await house.move(Unload)
        house.check_gone()
        await house.stop()

    run_virtually(main)


@virtually
async def test_a_load_goes_no_further_once_any_member_is_lost() -> None:
    house = GroupHouse(["d0", "d1"])
    house.loop.call_later(0.07, house.workers["rank-1"].die)  # the host copy is being read
    await house.bring()
    await house.move(Unload)
    await asyncio.sleep(1)
    assert calls(house, "load") == [0, 0]
    house.check_gone()
    await house.stop()
