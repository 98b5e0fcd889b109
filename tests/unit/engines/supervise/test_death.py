"""What is made of a worker's end, and when a step counts as hanging."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator

import pytest

from engines.link.worker_memory import WorkerMemory
from engines.supervise.death import WorkerDeath, death_of, wait_stalled

MAX_STALL_S = 0.1


@pytest.fixture
def memory() -> Iterator[WorkerMemory]:
    fd = WorkerMemory.make()
    yield WorkerMemory(fd)
    os.close(fd)


def test_the_sequences_of_the_running_step_are_named_by_the_routers_ids(memory: WorkerMemory) -> None:
    memory.recorder.begin_step([(1 << 40) + 7, (1 << 40) + 9])
    assert death_of(memory, -signal.SIGSEGV, by_us=False) == WorkerDeath(frozenset({7, 9}))


def test_outside_a_step_nobody_is_named(memory: WorkerMemory) -> None:
    assert death_of(memory, 1, by_us=False) == WorkerDeath()


@pytest.mark.parametrize(("by_us", "killed"), [(False, True), (True, False)])
def test_a_kill_counts_as_one_if_it_was_not_ours(memory: WorkerMemory, by_us: bool, killed: bool) -> None:
    assert death_of(memory, -signal.SIGKILL, by_us=by_us).killed is killed


async def test_a_step_that_does_not_end_is_noticed(memory: WorkerMemory) -> None:
    memory.status.begin_step(time.monotonic())
    began_s = time.monotonic()
    async with asyncio.timeout(5):
        await wait_stalled(memory.status, MAX_STALL_S, time.monotonic)
    assert time.monotonic() - began_s >= MAX_STALL_S


async def test_steps_that_end_and_rest_between_steps_are_no_stall(memory: WorkerMemory) -> None:
    watching = asyncio.create_task(wait_stalled(memory.status, MAX_STALL_S, time.monotonic))
    for _ in range(6):
        memory.status.begin_step(time.monotonic())
        await asyncio.sleep(MAX_STALL_S / 2)
        memory.status.end_step(time.monotonic())
        await asyncio.sleep(MAX_STALL_S / 4)
    assert not watching.done()
    await asyncio.sleep(2 * MAX_STALL_S)
    assert not watching.done()
    watching.cancel()


async def test_a_step_that_goes_on_after_the_machine_stood_still_is_no_stall(memory: WorkerMemory) -> None:
    memory.status.begin_step(time.monotonic() - 100)  # the time that passed for nobody
    watching = asyncio.create_task(wait_stalled(memory.status, 10 * MAX_STALL_S, time.monotonic))
    await asyncio.sleep(0)
    memory.status.end_step(time.monotonic())
    await asyncio.sleep(1.5 * MAX_STALL_S)
    assert not watching.done()
    watching.cancel()
