"""Requests hear of a worker's death once, and suspects wait for their trial."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from engines.supervise.death import WorkerDeath
from router.dispatch.running_requests import RunningRequest, RunningRequests
from router.dispatch.suspects import Suspects


class Request:
    """A request of one sequence, which keeps what it is told."""

    def __init__(self, sequence_id: int) -> None:
        self.sequence_id = sequence_id
        self.num_tokens = 0
        self.interruptions: list[bool] = []

    def num_further_tokens(self) -> int:
        return self.num_tokens

    def has_sequence_of(self, sequence_ids: Collection[int]) -> bool:
        return self.sequence_id in sequence_ids

    def interrupt(self, *, poisonous: bool) -> None:
        self.interruptions.append(poisonous)


class Rig:
    """Requests 0 to 3, all on worker ``w`` at first."""

    def __init__(self) -> None:
        suspects = Suspects[RunningRequest](clear_after_tokens=8, killed_again_s=60)
        self.running = RunningRequests(suspects, lambda: 0.0)
        self.requests = [Request(number) for number in range(4)]
        for request in self.requests:
            self.running.enter(request, "w")

    def die(self, *in_step: int) -> None:
        self.running.worker_died("w", WorkerDeath(frozenset(in_step)))
        for request in self.requests:
            self.running.leave(request, "w")

    def trials(self) -> list[asyncio.Task[None]]:
        return [asyncio.create_task(self.running.wait_trial(request)) for request in self.requests]


async def turns(tasks: list[asyncio.Task[None]]) -> list[bool]:
    """Which of them may run, when everything that can happen has."""
    for _ in range(5):
        await asyncio.sleep(0)
    return [task.done() for task in tasks]


async def test_all_hear_of_a_death_once_and_only_those_in_the_step_wait_their_turn() -> None:
    rig = Rig()
    rig.die(0, 2)
    rig.die(0, 2)
    assert [request.interruptions for request in rig.requests] == [[False]] * 4
    trials = rig.trials()
    assert await turns(trials) == [True, True, False, True]
    rig.requests[0].num_tokens = 8
    rig.running.progressed(rig.requests[0])
    assert await turns(trials) == [True] * 4


async def test_the_one_that_kills_alone_is_told_that_it_is_poisonous() -> None:
    rig = Rig()
    rig.die(3)
    await asyncio.gather(*rig.trials())
    for request in rig.requests:
        rig.running.enter(request, "w")
    rig.die(3)
    assert [request.interruptions for request in rig.requests] == [[False, False]] * 3 + [[False, True]]


async def test_who_goes_away_while_it_waits_passes_its_turn_on() -> None:
    rig = Rig()
    rig.die(0, 1, 2)
    trials = rig.trials()
    assert await turns(trials) == [True, False, False, True]
    trials[1].cancel()
    await asyncio.wait([trials[1]])
    rig.running.forget(rig.requests[1])
    rig.running.forget(rig.requests[0])
    assert await turns(trials) == [True] * 4
    assert not trials[2].cancelled()
