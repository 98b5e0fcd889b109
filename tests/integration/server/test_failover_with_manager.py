"""Dispatcher, memory manager, host cache, supervisor and a real worker: three models where two fit."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.null_worker import MAX_MODEL_LEN, POISON_PROGRAM, expected_tokens
from support.poison_worker import CRASHES_ID

from engines.api import SamplingParams
from engines.config import SupervisorConfig, WorkerSpec
from engines.supervise.supervisor import Supervisor
from memory_manager.config import DeviceBudget, ManagerConfig
from memory_manager.fleet.controller import MemoryManager
from memory_manager.host.cache import HostCache
from memory_manager.ports import ArtifactRef, DeploymentSpec
from mooring.errors import PoisonousRequestError
from mooring.units import MIB
from router.dispatch.dispatch import Dispatcher
from router.request.request import GenerationRequest

pytestmark = pytest.mark.integration

MODELS = ("a", "b", "c")
WEIGHTS_BYTES = 4 * MIB
GUARANTEE_BYTES = 2 * MIB
HALF_LIFE_S = 1e9  # no arrival is forgotten
TWO_FIT_BYTES = 2 * (WEIGHTS_BYTES + GUARANTEE_BYTES) + 2 * MIB


class Stack:
    """What ``mooring serve`` wires, less the doors."""

    def __init__(self, folder: Path) -> None:
        self.cache = HostCache(64 * MIB)
        config = ManagerConfig(rate_half_life_s=HALF_LIFE_S)
        self.manager = MemoryManager([DeviceBudget("cpu", TWO_FIT_BYTES)], self.cache, config)
        self.num_deaths = 0
        self.spec = WorkerSpec(
            "cpu-0", "null", "cpu", TWO_FIT_BYTES, {"step_time_s": 0.002}, program=POISON_PROGRAM
        )
        self.supervisor = Supervisor(
            on_ready=self.manager.add_worker,
            on_lost=self._lost,
            config=SupervisorConfig(first_backoff_s=0.01),
        )
        self.dispatcher = Dispatcher(self.manager, self.supervisor.client)
        for name in MODELS:
            self.manager.upsert_deployment(deployment(folder, name))

    def _lost(self, worker_id: str) -> None:
        self.num_deaths += 1
        self.manager.worker_lost(worker_id)

    def num_arrivals(self, name: str) -> int:
        """Requests that the planner has counted for a model."""
        rate_per_s = self.manager._deployments[name].rate.per_s(time.monotonic(), HALF_LIFE_S)
        return round(rate_per_s * HALF_LIFE_S / math.log(2))

    @property
    def pid(self) -> int:
        return self.supervisor.client("cpu-0").capabilities().pid

    async def tokens(self, model: str, prompt_ids: tuple[int, ...], max_tokens: int) -> list[int]:
        request = GenerationRequest("r", model, prompt_ids, SamplingParams(max_tokens=max_tokens))
        stream = await self.dispatcher.generate(request)
        return [
            token for chunks in [c async for c in stream] for chunk in chunks for token in chunk.token_ids
        ]


def deployment(folder: Path, name: str) -> DeploymentSpec:
    weights = folder / f"{name}.bin"
    weights.write_bytes(os.urandom(64))
    return DeploymentSpec(
        name=name,
        artifact=ArtifactRef(name, weights, 64, b"{}"),
        weights_bytes=WEIGHTS_BYTES,
        kv_guarantee_bytes=GUARANTEE_BYTES,
        kv_longest_bytes=GUARANTEE_BYTES,
        max_model_len=MAX_MODEL_LEN,
    )


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    stack = Stack(tmp_path)
    await stack.supervisor.add(stack.spec)
    yield stack
    await stack.manager.stop()
    await stack.supervisor.stop(grace_s=0.0)
    await stack.cache.close()


async def test_all_streams_of_three_models_survive_a_kill(stack: Stack) -> None:
    jobs = [(MODELS[number % 3], (number,)) for number in range(15)]
    reads = [asyncio.create_task(stack.tokens(model, prompt, 100)) for model, prompt in jobs]
    await asyncio.sleep(0.15)
    os.kill(stack.pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        results = await asyncio.gather(*reads)
    for (_, prompt), tokens in zip(jobs, results, strict=True):
        assert tokens == expected_tokens(prompt, 100)
    assert stack.num_deaths == 1
    assert [stack.num_arrivals(name) for name in MODELS] == [5, 5, 5], "who goes on arrives once"


async def test_a_poisonous_request_takes_no_model_down_for_ever(stack: Stack) -> None:
    jobs = [(MODELS[number % 3], (number,)) for number in range(9)]
    reads = [asyncio.create_task(stack.tokens(model, prompt, 60)) for model, prompt in jobs]
    async with asyncio.timeout(20):
        with pytest.raises(PoisonousRequestError):
            await stack.tokens("b", (CRASHES_ID,), 60)
        results = await asyncio.gather(*reads)
    for (_, prompt), tokens in zip(jobs, results, strict=True):
        assert tokens == expected_tokens(prompt, 60)
    assert 2 <= stack.num_deaths <= 6
