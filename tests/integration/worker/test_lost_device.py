"""A worker whose device is lost ends by itself, and its streams go on in the next one."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import pytest
from support.losing_worker import LOST_MARK
from support.null_worker import NullFleet
from support.paths import ROOT
from support.torch_engines import TinyModel, tiny_model

from engines.api import FinishReason, SamplingParams
from engines.config import WorkerSpec
from engines.supervise.client import WorkerClient
from memory_manager.kv_spec import round_to_pages
from memory_manager.ports import ArtifactRef, DeploymentSpec
from mooring.errors import WorkerLostError
from mooring.units import MIB
from router.dispatch.dispatch import Dispatcher
from router.request.request import GenerationRequest

pytestmark = pytest.mark.integration

PROGRAM = (str(ROOT / "tests/support/losing_worker.py"),)
MAX_MODEL_LEN = 128
NUM_TOKENS = 50


class TorchFleet(NullFleet):
    """A worker that loads a tiny model as ``m/0`` in each of its lives."""

    def __init__(self, model: TinyModel) -> None:
        super().__init__(PROGRAM, step_time_s=0.0, max_stall_s=60.0)
        self.spec = WorkerSpec("cpu-0", "torch", "cpu", 256 * MIB, {"num_threads": 1}, program=PROGRAM)
        self._model = model

    async def _load(self, client: WorkerClient) -> None:
        manifest = self._model.manifest
        artifact = ArtifactRef("key", Path("/nowhere"), manifest.num_bytes, manifest.to_json())
        spec = DeploymentSpec("m", artifact, round_to_pages(manifest.num_bytes), 0, 2 * MIB, MAX_MODEL_LEN)
        descriptor = self._model.host_copy()
        try:
            await client.load("m/0", spec, descriptor)
            await client.set_lease(32 * MIB, 1)
        except WorkerLostError:
            return
        finally:
            os.close(descriptor)
        self.resident.set()


async def test_streams_go_on_when_the_device_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(LOST_MARK, str(tmp_path / "lost"))
    model = tiny_model("llama")
    fleet = TorchFleet(model)
    prompts = [tuple(range(3 + number, 13 + number)) for number in range(3)]
    sampling = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=NUM_TOKENS)
    try:
        with caplog.at_level(logging.WARNING, "engines.supervise"):
            async with asyncio.timeout(120):
                await fleet.supervisor.add(fleet.spec)
                await fleet.resident.wait()
                dispatcher = Dispatcher(fleet, fleet.supervisor.client)
                requests = [GenerationRequest("r", "m", prompt, sampling) for prompt in prompts]
                streams = [await dispatcher.generate(request) for request in requests]
                for prompt, stream in zip(prompts, streams, strict=True):
                    chunks = [chunk async for step in stream for chunk in step]
                    assert chunks[-1].finished is not None
                    assert chunks[-1].finished.reason is FinishReason.LENGTH
                    tokens = [token_id for chunk in chunks for token_id in chunk.token_ids]
                    assert len(tokens) == NUM_TOKENS
                    assert max(model.behind_best(prompt, tokens)) < 1e-4
        assert fleet.num_deaths == 1
    finally:
        await fleet.supervisor.stop(grace_s=0.0)
    assert "worker cpu-0 ended with status 5" in caplog.text
