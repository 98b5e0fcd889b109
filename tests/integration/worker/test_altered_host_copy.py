"""A stray write to the weights in host memory, which a GPU's worker could make: they are read from storage again."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support.torch_engines import TinyModel, tiny_model

from engines.api import SamplingParams
from engines.checkpoint.model_config import kv_groups
from engines.config import WorkerSpec
from engines.supervise.supervisor import Supervisor
from memory_manager.config import DeviceBudget
from memory_manager.fleet.controller import MemoryManager
from memory_manager.fleet.events import Event, EventKind
from memory_manager.host.cache import HostCache
from memory_manager.kv_spec import kv_bytes_for_tokens, round_to_pages
from memory_manager.memfd import open_to_write
from memory_manager.policy.residency import Residency
from memory_manager.ports import ArtifactRef, DeploymentSpec
from mooring.units import MIB
from router.dispatch.dispatch import Dispatcher
from router.request.request import GenerationRequest

pytestmark = pytest.mark.integration

MAX_MODEL_LEN = 128
BUDGET = 128 * MIB


class Stack:
    """What serves one model with a real worker, its host copy writable as one for a GPU is."""

    def __init__(self, model: TinyModel, folder: Path, cpu_wake: str) -> None:
        self.events: list[Event] = []
        self.cache = HostCache(BUDGET, to_be_pinned=True)
        self.manager = MemoryManager([DeviceBudget("cpu", BUDGET)], self.cache, events=self.events.append)
        self.spec = WorkerSpec("cpu-0", "torch", "cpu", BUDGET, {"cpu_wake": cpu_wake})
        self.supervisor = Supervisor(self.manager.add_worker, self.manager.worker_lost)
        self.dispatcher = Dispatcher(self.manager, self.supervisor.client)
        weights = folder / "weights.bin"
        weights.write_bytes(model.packed)
        num_bytes = len(model.packed)
        self.manager.upsert_deployment(
            DeploymentSpec(
                "m",
                ArtifactRef("artifact-m", weights, num_bytes, model.manifest.to_json()),
                round_to_pages(num_bytes),
                0,
                round_to_pages(kv_bytes_for_tokens(kv_groups(model.config, 4), MAX_MODEL_LEN)),
                MAX_MODEL_LEN,
            )
        )

    async def tokens(self, prompt: tuple[int, ...], num_tokens: int) -> list[int]:
        sampling = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
        stream = await self.dispatcher.generate(GenerationRequest("r", "m", prompt, sampling))
        async with asyncio.timeout(60):
            return [token for batch in [b async for b in stream] for new in batch for token in new.token_ids]

    async def asleep(self) -> None:
        await self.manager.sleep("m")
        status = self.manager.status("m")
        assert status is not None
        assert status.residency is Residency.WARM

    async def write_astray(self) -> None:
        """Changes a few bytes of the host copy, as a worker's stray pointer would."""
        copy = await self.cache.get(ArtifactRef("artifact-m", Path(), 0, b""))
        fd = open_to_write(copy.fd)
        os.pwrite(fd, b"astray", 4321)
        os.close(fd)
        copy.release()

    def failures(self) -> list[str]:
        return [str(e.figures["code"]) for e in self.events if e.kind is EventKind.FAILURE]


@asynccontextmanager
async def serving(model: TinyModel, folder: Path, cpu_wake: str) -> AsyncIterator[Stack]:
    stack = Stack(model, folder, cpu_wake)
    await stack.supervisor.add(stack.spec)
    yield stack
    await stack.manager.stop()
    await stack.supervisor.stop(grace_s=0.0)
    await stack.cache.close()


@pytest.mark.parametrize("cpu_wake", ["copy", pytest.param("remap", marks=pytest.mark.slow)])
async def test_a_model_whose_host_copy_was_altered_is_read_again_and_says_the_same(
    tmp_path: Path, cpu_wake: str
) -> None:
    model, prompt = tiny_model("llama"), (5, 17, 203, 44)
    async with serving(model, tmp_path, cpu_wake) as stack:
        expected = model.generate(prompt, 12)
        assert await stack.tokens(prompt, 12) == expected
        await stack.asleep()
        assert await stack.tokens(prompt, 12) == expected
        assert stack.failures() == []
        await stack.asleep()
        await stack.write_astray()
        assert await stack.tokens(prompt, 12) == expected, "and the request only waits a little longer"
        assert stack.failures() == ["host_copy_altered"]
