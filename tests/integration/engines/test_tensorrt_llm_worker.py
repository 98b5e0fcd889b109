"""TensorRT-LLM's double in a real worker, and behind the doors of a real server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from support.null_worker import Collected, until
from support.paths import ROOT
from support.running_server import RunningServer
from support.small_checkpoint import write_checkpoint
from support.tensorrt_llm_double import DOUBLES, manifest_of

from engines.api import SamplingParams, SequenceRequest
from engines.config import SupervisorConfig, WorkerSpec
from engines.supervise.client import WorkerClient
from engines.supervise.supervisor import Supervisor
from memory_manager.kv_spec import PAGE_BYTES, round_to_pages
from memory_manager.ports import ArtifactRef, DeploymentSpec, WarmPlace
from mooring.errors import ArtifactError, InsufficientMemoryError

pytestmark = pytest.mark.integration

PROGRAM = (str(ROOT / "tests/support/tensorrt_llm_worker.py"),)


class Fleet:
    """One supervised worker on the double."""

    def __init__(self, folder: Path) -> None:
        manifest = manifest_of(folder)
        ref = ArtifactRef("key", folder, manifest.num_bytes, manifest.to_json(), is_folder=True)
        weights_bytes = round_to_pages(manifest.num_bytes)
        self.folder, self.deployment = folder, DeploymentSpec("m", ref, weights_bytes, 0, 1 << 20, 256)
        self.ready: asyncio.Queue[WorkerClient] = asyncio.Queue()
        self.supervisor = Supervisor(
            self.ready.put_nowait, lambda worker_id: None, config=SupervisorConfig(first_backoff_s=0.01)
        )

    async def start(self) -> WorkerClient:
        await self.supervisor.add(WorkerSpec("w", "tensorrt_llm", "cpu", 1 << 28, program=PROGRAM))
        return await self.next_life()

    async def next_life(self) -> WorkerClient:
        async with asyncio.timeout(60):
            return await self.ready.get()

    async def load(self, client: WorkerClient) -> int:
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            return await client.load("m/0", self.deployment, descriptor, from_file=True)
        finally:
            os.close(descriptor)


def sequence(number: int, **sampling: Any) -> SequenceRequest:
    params = SamplingParams(**{"temperature": 0.0, "ignore_eos": True, "max_tokens": 8, **sampling})
    return SequenceRequest(number, "m/0", np.array([5, 6, 7], np.int32), params)


async def test_a_worker_serves_sleeps_and_wakes(tmp_path: Path) -> None:
    fleet = Fleet(write_checkpoint(tmp_path / "m"))
    client = await fleet.start()

    async def has_none_running() -> bool:
        return (await client.stats()).replicas[0].num_running == 0

    try:
        abilities = client.capabilities()
        assert (abilities.sleep, abilities.warm, abilities.elastic_kv) == (True, WarmPlace.WORKER, False)
        held_bytes = await fleet.load(client)
        assert held_bytes == fleet.deployment.artifact.num_bytes
        whole, parked, refused, cancelled = (Collected() for _ in range(4))
        client.submit(sequence(1, max_tokens=40), whole)
        assert (await whole.end()).finished is not None
        client.submit(sequence(2, max_tokens=40), parked)
        await parked.started.wait()
        assert await client.sleep("m/0") == held_bytes
        assert await client.wake("m/0", 1 << 30) == held_bytes
        await parked.end()
        assert parked.token_ids == whole.token_ids, "it went on where it was"
        client.submit(sequence(3, prompt_logprobs=1), refused)
        finished = (await refused.end()).finished
        assert finished is not None
        assert (finished.error_code, refused.token_ids) == ("unsupported_parameter", [])
        client.submit(sequence(4, max_tokens=200), cancelled)
        await cancelled.started.wait()
        client.cancel([4])
        await until(has_none_running)
        await client.unload("m/0")
        assert (await client.stats()).replicas == ()
    finally:
        await fleet.supervisor.stop(grace_s=0.0)


async def test_a_worker_that_is_killed_is_seen_and_comes_again(tmp_path: Path) -> None:
    fleet = Fleet(write_checkpoint(tmp_path / "m"))
    client = await fleet.start()
    try:
        await fleet.load(client)
        running = Collected()
        client.submit(sequence(1, max_tokens=200), running)
        await running.started.wait()
        os.kill(client.capabilities().pid, signal.SIGKILL)
        finished = (await running.end()).finished
        assert finished is not None
        assert finished.error_code == "worker_lost"
        again = await fleet.next_life()
        await fleet.load(again)
        whole = Collected()
        again.submit(sequence(2), whole)
        await whole.end()
        assert len(whole.token_ids) == 8
    finally:
        await fleet.supervisor.stop(grace_s=0.0)


async def test_a_load_beyond_its_lease_is_refused_over_the_wire(tmp_path: Path) -> None:
    fleet = Fleet(write_checkpoint(tmp_path / "m"))
    client = await fleet.start()
    try:
        descriptor = os.open(fleet.folder, os.O_RDONLY)
        small = DeploymentSpec("m", fleet.deployment.artifact, 1, 0, 1 << 20, 256)
        with pytest.raises(InsufficientMemoryError):
            await client.load("m/0", small, descriptor, from_file=True)
        gone = manifest_of(fleet.folder)
        (fleet.folder / "config.json").unlink()
        ref = ArtifactRef("key", fleet.folder, gone.num_bytes, gone.to_json(), is_folder=True)
        with pytest.raises(ArtifactError, match="checkpoint folder"):
            await client.load(
                "m/0", DeploymentSpec("m", ref, 1 << 30, 0, 1 << 20, 256), descriptor, from_file=True
            )
        os.close(descriptor)
    finally:
        await fleet.supervisor.stop(grace_s=0.0)


def test_two_models_share_a_budget_for_one_behind_the_doors(tmp_path: Path) -> None:
    """Requests for both are answered, and each model leaves the device for the other."""
    models = {name: write_checkpoint(tmp_path / name, seed) for seed, name in enumerate(("one", "two"))}
    environment = {"PYTHONPATH": f"{DOUBLES}:{ROOT}"}
    budget = (
        round_to_pages(manifest_of(models["one"]).num_bytes) + 3 * PAGE_BYTES
    )  # its KV, and one to start with
    flags = ["--engine", "tensorrt_llm", "--device", "cpu", "--dtype", "bfloat16"]
    flags += ["--memory-budget", str(budget)]
    with RunningServer(tmp_path / "data", models, flags, environment) as server:

        def ask(name: str, **body: Any) -> httpx.Response:
            given = {"model": name, "prompt": "hello", "max_tokens": 6, "temperature": 0, "ignore_eos": True}
            return server.client.post(f"{server.http_url}/v1/completions", json={**given, **body})

        answer = ask("one")
        assert answer.status_code == 200, answer.text
        first = answer.json()
        assert first["usage"]["completion_tokens"] == 6
        answers: list[int] = []
        threads = [
            threading.Thread(target=lambda name=name: answers.append(ask(name).status_code))
            for name in ("one", "two") * 6
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [200] * 12
        assert ask("one").json()["choices"][0]["text"] == first["choices"][0]["text"], "asleep meanwhile"
        refused = ask("one", prompt_logprobs=1)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unsupported_parameter")
        with server.client.stream(
            "POST",
            f"{server.http_url}/v1/completions",
            json={"model": "two", "prompt": "hello", "max_tokens": 5, "stream": True, "ignore_eos": True},
        ) as stream:
            events = [line for line in stream.iter_lines() if line.startswith("data: {")]
        assert json.loads(events[-1].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert {each["engine"] for each in server.admin("GET", "/deployments").json()} == {"tensorrt_llm"}
        assert server.transitions("waking")[1] > 0
