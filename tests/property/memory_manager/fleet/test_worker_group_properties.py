"""Random moves, failures and deaths of a replica on a group of workers, on virtual time."""

import asyncio
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st
from support.simulated_group import GroupHouse
from support.simulated_memory import PAGE, run_virtually

from memory_manager.fleet.ledger import Owner
from memory_manager.policy.plan_types import Sleep, Unload, Wake
from memory_manager.policy.residency import Residency
from mooring.errors import InternalError

MOVES = {"wake": Wake, "sleep": Sleep, "unload": Unload}


@dataclass(frozen=True)
class Step:
    """A move that is tried.

    Attributes:
        rank: of the worker that the others are about.
        others_pages: taken of its device meanwhile, as far as there is room.
        dies_after_s: when it dies after the beginning; None if it does not.
    """

    kind: str
    rank: int
    others_pages: int
    dies_after_s: float | None


steps = st.builds(
    Step,
    kind=st.sampled_from(["load", "load", *MOVES]),
    rank=st.integers(0, 2),
    others_pages=st.sampled_from([0, 0, 0, 5, 15, 25]),
    dies_after_s=st.sampled_from([None, None, None, 0.0, 0.0005, 0.05, 0.12, 0.16]),
)


async def take(house: GroupHouse, step: Step) -> None:
    """Tries one move, and checks what must hold when it has ended."""
    worker = list(house.workers.values())[step.rank % len(house.workers)]
    ledger = house.manager._ledgers[worker.device]
    others = Owner("kv", "others")
    ledger.grant(others, min(step.others_pages * PAGE, ledger.free_bytes))
    if step.dies_after_s is not None:
        house.loop.call_later(step.dies_after_s, worker.die)
    try:
        if step.kind == "load" and house.replica.group is None:
            await house.bring()
        elif step.kind in MOVES and house.can(MOVES[step.kind]):
            await house.move(MOVES[step.kind])
    except InternalError as error:
        if "no room" not in error.message:
            raise
    ledger.release(others)
    house.check()
    if house.replica.group is None:
        house.check_gone()
    else:
        assert house.replica.residency in (Residency.RESIDENT, Residency.WARM, Residency.FAILED)


@settings(max_examples=150)
@given(
    devices=st.lists(st.sampled_from(["d0", "d1", "d2"]), min_size=1, max_size=3),
    todo=st.lists(steps, min_size=1, max_size=12),
    failure_rate=st.sampled_from([0.0, 0.3]),
    remains_pages=st.integers(0, 1),
    seed=st.integers(0, 1000),
)
def test_members_are_leased_the_same_and_hold_no_more_whatever_fails(
    devices: list[str], todo: list[Step], failure_rate: float, remains_pages: int, seed: int
) -> None:
    async def main() -> None:
        house = GroupHouse(devices, seed, failure_rate=failure_rate, remains_pages=remains_pages)
        for step in todo:
            await take(house, step)
        await asyncio.sleep(1)  # those that are to die have died
        house.options["failure_rate"] = 0.0
        for worker in house.workers.values():
            worker.failure_rate = 0.0
        if house.replica.group is not None:
            await house.move(Unload)
        house.check_gone()
        await house.bring()
        assert house.replica.residency is Residency.RESIDENT
        assert all(each.weights_bytes == house.replica.lease_bytes for each in house.workers.values())
        await house.stop()

    run_virtually(main)
