"""The thread that owns the engine: order of commands, rest when idle, pace, and failure."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable

import pytest
from support.until import until

from engines.api import LoadSpec, SamplingParams, SequenceRequest, StepOutput
from engines.config import NullEngineConfig
from engines.link.flight_recorder import FlightRecorder
from engines.link.worker_memory import WorkerMemory
from engines.null import NullEngine
from engines.worker.step_thread import StepThread


class Recording(NullEngine):
    """Counts what the thread asks of it, and can wait for memory or break."""

    def __init__(self, recorder: FlightRecorder) -> None:
        super().__init__(NullEngineConfig(), recorder=recorder)
        self.recorder = recorder
        self.num_questions = 0
        self.threads: set[str] = set()
        self.waits_for_memory = False
        self.num_to_give_back = 0
        self.broken = False

    def has_work(self) -> bool:
        self.num_questions += 1
        return self.waits_for_memory or self.num_to_give_back > 0 or super().has_work()

    def is_giving_back(self) -> bool:
        return self.num_to_give_back > 0

    def launch(self) -> None:
        self.threads.add(threading.current_thread().name)
        if self.broken:
            self.recorder.begin_step([1])
            raise RuntimeError("out of order")
        if self.waits_for_memory:
            time.sleep(0.5e-3)  # to find that out takes its time
        self.num_to_give_back = max(0, self.num_to_give_back - 1)
        super().launch()


class Rig:
    def __init__(self, deliver: Callable[[list[StepOutput]], None] | None = None, niceness: int = 0) -> None:
        self.outputs: list[StepOutput] = []
        self.failure: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        memory_fd = WorkerMemory.make()
        self.memory = WorkerMemory(memory_fd)
        os.close(memory_fd)
        self.engine = Recording(self.memory.recorder)
        self.engine.load(LoadSpec("m/0", b"{}", 100_000, 0), os.memfd_create("weights"))
        self.thread = StepThread(
            self.engine,
            self.memory,
            asyncio.get_running_loop(),
            deliver or self.outputs.extend,
            self.failure.set_result,
            niceness,
        )
        self.thread.start()

    def submit(self, max_tokens: int) -> None:
        request = SequenceRequest(1, "m/0", (1,), SamplingParams(max_tokens=max_tokens))
        self.thread.post(lambda: self.engine.submit(request))

    async def finished(self) -> None:
        async with asyncio.timeout(20):
            while not any(output.finished for output in self.outputs):  # noqa: ASYNC110 - set by a thread
                await asyncio.sleep(0.001)


async def test_steps_run_on_the_one_thread_and_arrive_in_order() -> None:
    rig = Rig()
    rig.submit(50)
    await rig.finished()
    assert rig.engine.threads == {"engine-step"}
    steps = [output.step for output in rig.outputs]
    assert steps == sorted(steps)
    assert rig.thread.stop(10)


async def test_a_call_brings_back_what_was_returned_or_raised() -> None:
    rig = Rig()
    assert await asyncio.wrap_future(rig.thread.call(lambda: 7)) == 7
    with pytest.raises(ZeroDivisionError):
        await asyncio.wrap_future(rig.thread.call(lambda: 1 // 0))
    assert rig.thread.stop(10)


async def test_with_nothing_to_do_it_asks_nothing() -> None:
    rig = Rig()
    await asyncio.wrap_future(rig.thread.call(lambda: None))  # it has begun
    before = rig.engine.num_questions
    await asyncio.sleep(0.1)
    assert rig.engine.num_questions <= before + 2  # after the call's step, and before it rests
    assert rig.thread.stop(10)


async def test_sequences_that_wait_for_memory_cost_no_busy_loop() -> None:
    rig = Rig()
    rig.engine.waits_for_memory = True
    began_s = time.monotonic()
    rig.thread.post(lambda: None)
    until(lambda: rig.engine.num_questions > 100, "it asks now and then")
    num_questions = rig.engine.num_questions
    assert num_questions < 1250 * (time.monotonic() - began_s)  # two a step
    assert rig.thread.stop(10)


async def test_memory_that_an_idle_engine_gives_back_leaves_without_a_pause() -> None:
    rig = Rig()
    began_s = time.monotonic()
    rig.thread.post(lambda: setattr(rig.engine, "num_to_give_back", 1000))
    until(lambda: rig.engine.num_questions > 1000, "it begins")
    until(lambda: rig.engine.num_to_give_back == 0, "it gives all back")
    assert time.monotonic() - began_s < 1.5, "a pause after each turn would be two seconds"
    assert rig.thread.stop(10)


async def test_a_quick_engine_waits_for_the_loop() -> None:
    rig = Rig()
    rig.submit(50_000)
    time.sleep(0.1)  # noqa: ASYNC251 - the loop is busy elsewhere, on purpose
    assert rig.engine.stats().steps_total <= 3
    assert rig.thread.stop(10), "also a thread that waits for the loop ends when it is told to"


async def test_a_broken_engine_is_reported_once() -> None:
    rig = Rig()
    rig.engine.broken = True
    rig.submit(5)
    async with asyncio.timeout(20):
        assert isinstance(await rig.failure, RuntimeError)
    assert rig.thread.stop(10)


async def test_the_record_of_a_step_is_cleared_unless_the_engine_broke_in_it() -> None:
    rig = Rig()
    rig.submit(3)
    await rig.finished()
    memory = rig.memory
    progress = memory.status.progress()
    assert (progress.num_steps, progress.began_s) == (rig.engine.stats().steps_total, 0.0)
    assert 0 < progress.busy_s < 10
    assert memory.recorder.sequence_ids() == []
    rig.engine.broken = True
    rig.submit(5)
    await rig.failure
    assert memory.recorder.sequence_ids() == [1]
    assert memory.status.progress().began_s > 0
    assert rig.thread.stop(10)


async def test_its_niceness_is_its_own() -> None:
    rig = Rig(niceness=3)
    before = os.getpriority(os.PRIO_PROCESS, 0)
    assert (
        await asyncio.wrap_future(rig.thread.call(lambda: os.getpriority(os.PRIO_PROCESS, 0))) == before + 3
    )
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
    assert rig.thread.stop(10)
