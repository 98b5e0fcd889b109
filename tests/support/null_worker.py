"""A supervised worker with the null engine, and the little of a memory manager that a dispatcher needs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from engines.api import ChoiceTokens, SamplingParams, SequenceRequest
from engines.config import CPU_MAX_STALL_S, NullEngineConfig, SupervisorConfig, WorkerSpec
from engines.null import null_token
from engines.supervise.client import WorkerClient
from engines.supervise.supervisor import Supervisor
from memory_manager.ports import ArtifactRef, DeploymentSpec
from mooring.errors import WorkerLostError

MAX_MODEL_LEN = 4096
WEIGHTS_BYTES = 2 << 20
WORKER_PROGRAM = ("-m", "engines.worker")
POISON_PROGRAM = (str(Path(__file__).with_name("poison_worker.py")),)


def expected_tokens(prompt_ids: tuple[int, ...], num_tokens: int) -> list[int]:
    return [null_token(prompt_ids, index, NullEngineConfig()) for index in range(num_tokens)]


def deployment(name: str = "m") -> DeploymentSpec:
    return DeploymentSpec(
        name=name,
        artifact=ArtifactRef(f"key-{name}", Path("/nowhere"), 4096, b"{}"),
        weights_bytes=WEIGHTS_BYTES,
        kv_guarantee_bytes=0,
        kv_longest_bytes=0,
        max_model_len=MAX_MODEL_LEN,
    )


async def load(client: WorkerClient, replica_id: str, name: str = "m") -> int:
    """Loads from a memfd that this process closes again: the worker has its own."""
    descriptor = os.memfd_create(name)
    try:
        os.ftruncate(descriptor, 4096)
        return await client.load(replica_id, deployment(name), descriptor)
    finally:
        os.close(descriptor)


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not await condition():  # noqa: ASYNC110 - of another process, which sets no event of ours
            await asyncio.sleep(0.005)


class Collected:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.chunks: list[ChoiceTokens] = []
        self.ends: list[ChoiceTokens] = []
        self.ended = asyncio.Event()
        self.started = asyncio.Event()

    def __call__(self, chunk: ChoiceTokens) -> None:
        self.chunks.append(chunk)
        self.token_ids += chunk.token_ids
        if chunk.token_ids:
            self.started.set()
        if chunk.finished is not None:
            self.ends.append(chunk)
            self.ended.set()

    async def end(self, timeout_s: float = 20.0) -> ChoiceTokens:
        async with asyncio.timeout(timeout_s):
            await self.ended.wait()
        return self.ends[0]


def sequence(number: int, prompt_ids: tuple[int, ...] = (1, 2, 3), **sampling: Any) -> SequenceRequest:
    return SequenceRequest(
        number, "m/0", np.array(prompt_ids, np.int32), SamplingParams(**{"max_tokens": 8, **sampling})
    )


class _Ticket:
    predicted_ttft_s = None

    def __init__(self, replica_id: str, worker_id: str, held: set[_Ticket]) -> None:
        self.replica_id = replica_id
        self.worker_id = worker_id
        self._held = held
        held.add(self)

    def note_tokens(self, num_tokens: int) -> None:
        """Needs none."""

    def release(self) -> None:
        self._held.discard(self)


class NullFleet:
    """One worker that loads ``m/0`` in each of its lives; gives out tickets for it while it is resident."""

    def __init__(self, program: tuple[str, ...], max_stall_s: float, **config: Any) -> None:
        self.spec = WorkerSpec(
            "cpu-0", "null", "cpu", 1 << 28, config, max_stall_s=max_stall_s, program=program
        )
        self.supervisor = Supervisor(
            self._ready, self._lost, config=SupervisorConfig(first_backoff_s=0.01, max_backoff_s=0.02)
        )
        self.resident = asyncio.Event()
        self.tickets: set[_Ticket] = set()
        self.num_deaths = 0
        self._loads: set[asyncio.Task[None]] = set()

    @property
    def client(self) -> WorkerClient:
        return self.supervisor.client("cpu-0")

    @property
    def pid(self) -> int:
        return self.client.capabilities().pid

    async def acquire(
        self,
        name: str,
        *,
        deadline_s: float,
        tpot_target_s: float | None,
        priority: int,
        tenant: str,
        weight: float,
        refuses_miss: bool,
        num_prompt: int,
        num_choices: int,
        most_output: float,
        again: bool,
    ) -> _Ticket:
        await self.resident.wait()
        return _Ticket("m/0", "cpu-0", self.tickets)

    async def load_again(self) -> None:
        """Loads what was unloaded."""
        await self._load(self.client)

    def _ready(self, client: WorkerClient) -> None:
        self._loads.add(asyncio.create_task(self._load(client)))

    def _lost(self, worker_id: str) -> None:
        self.num_deaths += 1
        self.resident.clear()

    async def _load(self, client: WorkerClient) -> None:
        try:
            await load(client, "m/0")
        except WorkerLostError:
            return
        self.resident.set()


@asynccontextmanager
async def null_fleet(
    program: tuple[str, ...] = WORKER_PROGRAM,
    step_time_s: float = 0.001,
    max_stall_s: float = CPU_MAX_STALL_S,
    **config: Any,
) -> AsyncIterator[NullFleet]:
    fleet = NullFleet(program, max_stall_s, step_time_s=step_time_s, **config)
    async with asyncio.timeout(20):
        await fleet.supervisor.add(fleet.spec)
        await fleet.resident.wait()
    try:
        yield fleet
    finally:
        await fleet.supervisor.stop(grace_s=0.0)
