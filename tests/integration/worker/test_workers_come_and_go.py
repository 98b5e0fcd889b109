"""Workers are added and removed while others serve: requests follow, nothing is lost, no byte stays promised."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import sysconfig
import venv
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from support.null_worker import MAX_MODEL_LEN, expected_tokens, until
from support.paths import ROOT

from engines.api import SamplingParams
from engines.config import SupervisorConfig, WorkerSpec
from engines.supervise.supervisor import Supervisor
from memory_manager.config import DeviceBudget, ManagerConfig
from memory_manager.fleet.controller import MemoryManager
from memory_manager.host.cache import HostCache
from memory_manager.policy.residency import Residency
from memory_manager.ports import ArtifactRef, DeploymentSpec
from mooring.errors import ConflictError, NotFoundError
from mooring.policy import DeploymentPolicy
from mooring.units import MIB
from router.dispatch.dispatch import Dispatcher
from router.request.request import GenerationRequest
from router.telemetry.gauges import gauges_of

pytestmark = pytest.mark.integration

BUDGET_BYTES = 12 * MIB
CONFIG = ManagerConfig(
    requests_per_replica=2,
    scale_up_after_s=0.05,
    scale_down_after_s=60,
    usage_poll_s=0.02,
)


def spec(worker_id: str, device: str, **options: str) -> WorkerSpec:
    return WorkerSpec(worker_id, "null", device, BUDGET_BYTES, {"step_time_s": 0.002}, **options)


class Stack:
    """Supervisor, manager and dispatcher over two devices, and one model that may have two replicas."""

    def __init__(self, folder: Path) -> None:
        self.cache = HostCache(64 * MIB)
        devices = [DeviceBudget("cpu:0", BUDGET_BYTES), DeviceBudget("cpu:1", BUDGET_BYTES)]
        self.manager = MemoryManager(devices, self.cache, CONFIG)
        self.supervisor = Supervisor(
            self.manager.add_worker,
            self.manager.worker_lost,
            self.manager.drain_worker,
            SupervisorConfig(first_backoff_s=0.01),
        )
        self.dispatcher = Dispatcher(self.manager, self.supervisor.client)
        weights = folder / "m.bin"
        weights.write_bytes(os.urandom(64))
        artifact = ArtifactRef("m", weights, 64, b"{}")
        self.deployment = DeploymentSpec(
            "m",
            artifact,
            4 * MIB,
            0,
            2 * MIB,
            MAX_MODEL_LEN,
            DeploymentPolicy(min_replicas=1, max_replicas=2),
        )
        self.num_ended = 0
        self._numbers = itertools.count()
        self._stopping = False

    async def request(self, num_tokens: int) -> None:
        prompt_ids = (next(self._numbers), 7)
        asked = GenerationRequest("r", "m", prompt_ids, SamplingParams(max_tokens=num_tokens))
        stream = await self.dispatcher.generate(asked)
        chunks = [chunk async for several in stream for chunk in several]
        assert [token for chunk in chunks for token in chunk.token_ids] == expected_tokens(
            prompt_ids, num_tokens
        )
        self.num_ended += 1

    async def keep_asking(self) -> None:
        while not self._stopping:
            await self.request(60)

    def stop_asking(self) -> None:
        self._stopping = True

    def active(self) -> dict[str | None, int]:
        """Requests on each worker that has the model."""
        status = self.manager.status("m")
        assert status is not None
        return {each.worker_id: each.num_active for each in status.replicas if each.worker_id is not None}

    def owners(self, device: str) -> dict[str, int]:
        return dict(next(each.owners for each in self.manager.snapshot().devices if each.name == device))


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    stack = Stack(tmp_path)
    yield stack
    await stack.manager.stop()
    await stack.supervisor.stop(grace_s=0.0)
    await stack.cache.close()


async def test_a_worker_comes_takes_its_part_and_goes_under_load(stack: Stack) -> None:
    await stack.supervisor.add(spec("first", "cpu:0"))
    stack.manager.upsert_deployment(stack.deployment)
    clients = [asyncio.create_task(stack.keep_asking()) for _ in range(8)]

    async def serves_alone() -> bool:
        return stack.active().get("first", 0) == 8

    await until(serves_alone)
    await stack.supervisor.add(spec("second", "cpu:1"))

    async def both_serve() -> bool:
        return all(stack.active().get(worker, 0) >= 2 for worker in ("first", "second"))

    await until(both_serve)
    assert {worker for worker, _ in gauges_of(stack.manager.snapshot(), (), {}).kv_unused_bytes} == {
        "first",
        "second",
    }
    long_ones = [asyncio.create_task(stack.request(1500)) for _ in range(4)]
    await asyncio.sleep(0.1)

    async with asyncio.timeout(20):
        await stack.supervisor.remove("second", grace_s=0.5)
    assert stack.owners("cpu:1") == {}, "every lease is the ledger's again"
    assert {worker for worker, _ in gauges_of(stack.manager.snapshot(), (), {}).kv_unused_bytes} == {"first"}
    assert [each.worker_id for each in stack.supervisor.workers()] == ["first"]

    num_before = stack.num_ended

    async def serves_on() -> bool:
        return stack.num_ended >= num_before + 8

    await until(serves_on)
    stack.stop_asking()
    async with asyncio.timeout(30):
        await asyncio.gather(*clients, *long_ones)
    stack.manager.check()
    assert stack.manager.snapshot().num_ledger_mismatches == 0
    assert set(stack.active()) == {"first"}


async def test_the_only_worker_goes_and_its_successor_serves_who_waited(stack: Stack) -> None:
    await stack.supervisor.add(spec("old", "cpu:0"))
    stack.manager.upsert_deployment(stack.deployment)
    running = [asyncio.create_task(stack.request(400)) for _ in range(4)]

    async def all_run() -> bool:
        return stack.active().get("old", 0) == 4

    await until(all_run)
    removal = asyncio.create_task(stack.supervisor.remove("old", grace_s=0.2))

    async def drains() -> bool:
        status = stack.manager.status("m")
        return status is not None and status.residency is Residency.DRAINING

    await until(drains)
    waiting = asyncio.create_task(stack.request(5))
    await removal
    assert stack.owners("cpu:0") == {}
    assert not waiting.done()
    await stack.supervisor.add(spec("new", "cpu:0"))
    async with asyncio.timeout(20):
        await asyncio.gather(*running, waiting)
    assert set(stack.active()) == {"new"}


async def test_ids_are_given_once_and_unknown_ones_refused(stack: Stack) -> None:
    await stack.supervisor.add(spec("a", "cpu:0"))
    with pytest.raises(ConflictError):
        await stack.supervisor.add(spec("a", "cpu:1"))
    await stack.supervisor.remove("a", grace_s=0.0)
    with pytest.raises(NotFoundError):
        await stack.supervisor.remove("a", grace_s=0.0)
    await stack.supervisor.add(spec("a", "cpu:1"))


async def test_a_worker_has_the_python_that_its_spec_names(stack: Stack, tmp_path: Path) -> None:
    venv.create(tmp_path / "environment")
    [packages] = (tmp_path / "environment" / "lib").glob("python*/site-packages")
    paths = [str(ROOT), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    (packages / "ours.pth").write_text("\n".join(paths))
    python = str(tmp_path / "environment" / "bin" / "python")
    assert python != sys.executable
    await stack.supervisor.add(spec("elsewhere", "cpu:0", python=python))
    stack.manager.upsert_deployment(stack.deployment)
    await stack.request(3)
    process = psutil.Process(stack.supervisor.client("elsewhere").capabilities().pid)
    assert process.cmdline()[0] == python
