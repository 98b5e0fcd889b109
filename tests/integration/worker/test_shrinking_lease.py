"""A smaller lease under running streams: nothing is lost or altered, and who goes first."""

from __future__ import annotations

import asyncio
import os
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from support.null_worker import WORKER_PROGRAM, Collected, NullFleet, until
from support.torch_engines import EngineDriver, TinyModel, engine_driver, tiny_model

from engines.api import FinishReason, SamplingParams, SequenceRequest
from engines.config import WorkerSpec
from engines.supervise.client import WorkerClient
from memory_manager.kv_spec import PAGE_BYTES, round_to_pages
from memory_manager.ports import ArtifactRef, DeploymentSpec, LeaseStatus
from mooring.errors import WorkerLostError
from mooring.units import MIB

pytestmark = pytest.mark.integration

NUM_STREAMS = 24
NUM_TOKENS = 100
LEASE_BYTES = 32 * PAGE_BYTES


class TorchFleet(NullFleet):
    """A worker that loads a tiny model as ``m/0``."""

    def __init__(self, model: TinyModel) -> None:
        super().__init__(WORKER_PROGRAM, max_stall_s=60.0)
        self.spec = WorkerSpec("cpu-0", "torch", "cpu", 256 * MIB, {"num_threads": 1})
        self._model = model

    async def _load(self, client: WorkerClient) -> None:
        manifest = self._model.manifest
        artifact = ArtifactRef("key", Path("/nowhere"), manifest.num_bytes, manifest.to_json())
        spec = DeploymentSpec("m", artifact, round_to_pages(manifest.num_bytes), PAGE_BYTES, PAGE_BYTES, 256)
        descriptor = self._model.host_copy()
        try:
            await client.load("m/0", spec, descriptor)
            await client.set_lease(LEASE_BYTES, 1)
        except WorkerLostError:
            return
        finally:
            os.close(descriptor)
        self.resident.set()


def prompt_of(number: int) -> list[int]:
    return [3 + (7 * number + 11 * place) % 290 for place in range(20 + number)]


def submit(client: WorkerClient, first_id: int) -> list[Collected]:
    sinks = [Collected() for _ in range(NUM_STREAMS)]
    for number, sink in enumerate(sinks):
        sampling = SamplingParams(
            temperature=float(number % 2), seed=number, ignore_eos=True, max_tokens=NUM_TOKENS
        )
        prompt = np.array(prompt_of(number), np.int32)
        client.submit(SequenceRequest(first_id + number, "m/0", prompt, sampling, cache_scope=None), sink)
    return sinks


async def texts(sinks: list[Collected]) -> list[list[int]]:
    for sink in sinks:
        end = await sink.end(60)
        assert end.finished is not None
        assert end.finished.reason is FinishReason.LENGTH
    return [sink.token_ids for sink in sinks]


async def test_a_lease_halved_under_running_streams_alters_no_text() -> None:
    fleet = TorchFleet(tiny_model("llama"))
    try:
        async with asyncio.timeout(120):
            await fleet.supervisor.add(fleet.spec)
            await fleet.resident.wait()
            client = fleet.client
            undisturbed = await texts(submit(client, 0))
            await client.set_lease(PAGE_BYTES, 2)  # what was stored goes
            while await client.set_lease(PAGE_BYTES, 2) is LeaseStatus.DEFERRED:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await client.set_lease(LEASE_BYTES, 3)
            sinks = submit(client, 100)
            for sink in sinks:
                await sink.started.wait()
            held_bytes = (await client.stats()).kv_bytes
            half_bytes = held_bytes // 2
            statuses = [await client.set_lease(half_bytes, 4)]
            most_bytes = held_bytes
            while statuses[-1] is not LeaseStatus.APPLIED:
                await asyncio.sleep(0.01)
                statuses.append(await client.set_lease(half_bytes, 4))
                stats = await client.stats()
                assert stats.kv_bytes <= most_bytes, "what was given up does not come back"
                most_bytes = max(stats.kv_bytes, half_bytes)
            assert statuses[0] is LeaseStatus.DEFERRED
            assert set(statuses) == {LeaseStatus.DEFERRED, LeaseStatus.APPLIED}
            stats = await client.stats()
            assert stats.kv_bytes <= half_bytes
            assert stats.replicas[0].preemptions_total > 0
            assert not all(sink.ended.is_set() for sink in sinks), "streams were running"
            assert await texts(sinks) == undisturbed
    finally:
        await fleet.supervisor.stop(grace_s=0.0)


async def test_an_idle_worker_applies_a_smaller_lease_by_itself() -> None:
    fleet = TorchFleet(tiny_model("llama"))
    try:
        async with asyncio.timeout(120):
            await fleet.supervisor.add(fleet.spec)
            await fleet.resident.wait()
            sinks = [Collected() for _ in range(NUM_STREAMS)]
            for number, sink in enumerate(sinks):
                sampling = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=NUM_TOKENS)
                prompt = np.array(prompt_of(number), np.int32)
                fleet.client.submit(SequenceRequest(number, "m/0", prompt, sampling, cache_scope=b""), sink)
            await texts(sinks)
            before = (await fleet.client.stats()).kv_bytes
            assert before > 8 * PAGE_BYTES, "prefixes are stored"
            await fleet.client.set_lease(2 * PAGE_BYTES, 2)  # asked once

            async def has_left() -> bool:
                return (await fleet.client.stats()).kv_bytes <= 2 * PAGE_BYTES

            await until(has_left)
            assert await fleet.client.set_lease(2 * PAGE_BYTES, 2) is LeaseStatus.APPLIED
    finally:
        await fleet.supervisor.stop(grace_s=0.0)


def preemptions_of(driver: EngineDriver) -> dict[str, int]:
    return {each.replica_id: each.preemptions_total for each in driver.engine.stats().replicas}


@pytest.mark.parametrize("slow", ["a", "b"])
def test_sequences_of_the_quicker_model_go_first(slow: str) -> None:
    """Those of the slow one have half as many tokens, which take far longer to compute."""
    with engine_driver(lease_pages=24, max_running_sequences=8, max_tokens_per_step=512) as driver:
        for replica_id in "ab":
            driver.load(tiny_model("llama"), replica_id)
        for number in range(12):
            replica_id = "ab"[number % 2]
            prompt = prompt_of(number)[:20] * (2 if replica_id == slow else 4)
            driver.submit(number, prompt, replica_id, max_tokens=100, cache_scope=None)
        while len(driver.tokens) < 12:
            driver.step()
        for replica_id in "ab":
            runner = driver.engine._places[replica_id].replica.runner
            assert runner is not None
            runner._resumption._swap.prefill_rate.per_s = 20.0 if replica_id == slow else 20_000.0
        driver.engine._swap_space.num_bytes = 0
        driver.engine._shrinking._clock = count().__next__  # one at a time
        held_pages = driver.engine.stats().kv_bytes // PAGE_BYTES - 1
        driver.lease_pages(held_pages - 1)
        driver.shrink()
        preemptions = preemptions_of(driver)
        assert preemptions[slow] == 0
        assert sum(preemptions.values()) > 0


@pytest.mark.parametrize("sure", ["a", "b"])
def test_what_an_operator_guaranteed_goes_last(sure: str) -> None:
    with engine_driver(lease_pages=24, max_running_sequences=8, max_tokens_per_step=512) as driver:
        for replica_id in "ab":
            guarantee_bytes = 8 * PAGE_BYTES if replica_id == sure else 0
            driver.load(tiny_model("llama"), replica_id, kv_guarantee_bytes=guarantee_bytes)
        for number in range(12):
            prompt = prompt_of(number)[:20] * 3
            driver.submit(number, prompt, "ab"[number % 2], max_tokens=100, cache_scope=None)
        while len(driver.tokens) < 12:
            driver.step()
        driver.engine._shrinking._clock = count().__next__  # one at a time
        held_pages = driver.engine.stats().kv_bytes // PAGE_BYTES - 1
        driver.lease_pages(held_pages - 1)
        driver.shrink()
        preemptions = preemptions_of(driver)
        assert preemptions.pop(sure) == 0
        assert sum(preemptions.values()) > 0


def test_while_the_lease_shrinks_who_needs_no_block_goes_on_and_nobody_is_admitted() -> None:
    with engine_driver(lease_pages=24, max_running_sequences=16) as driver:
        driver.load(tiny_model("llama"))
        for number in range(12):
            driver.submit(number, prompt_of(number), max_tokens=60, cache_scope=None)
        while len(driver.tokens) < 12:
            driver.step()
        driver.submit(99, prompt_of(3), priority=1, max_tokens=2, cache_scope=None)
        driver.engine._shrinking._preempt = lambda num_pages: False  # it takes long
        assert driver.lease_pages(1) is LeaseStatus.DEFERRED
        before = {number: len(tokens) for number, tokens in driver.tokens.items()}
        for _ in range(20):
            driver.step()
        gained = [len(driver.tokens[number]) - before[number] for number in range(12)]
        assert 99 not in driver.tokens
        assert max(gained) > 0, "to the ends of their blocks"
        assert max(gained) < 16, "and no further"
        assert driver.preemptions() == 0
        driver.engine._shrinking._preempt = driver.engine._preemption.for_lease
        driver.shrink()
        driver.lease_pages(24)
        driver.run()
        assert {len(driver.tokens[number]) for number in range(12)} == {60}
        assert len(driver.tokens[99]) == 2
