"""A request runs on the weights that it was made for, or not at all."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from engines.api import SamplingParams, SequenceRequest
from engines.supervise.client import SequenceSink, WorkerClient
from engines.supervise.death import WorkerDeath
from mooring.errors import ModelUnavailableError, WorkerLostError
from router.dispatch.dispatch import Dispatcher, Ticket, acquire
from router.request.request import GenerationRequest


class Lease:
    replica_id = "m/0"
    worker_id = "w"
    predicted_ttft_s = 0.25

    def __init__(self, artifact_key: str) -> None:
        self.artifact_key = artifact_key
        self.released = False

    def release(self) -> None:
        self.released = True


class Source:
    def __init__(self, lease: Lease) -> None:
        self.lease = lease

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
    ) -> Ticket:
        return self.lease


def request_for(artifact_key: str) -> GenerationRequest:
    return GenerationRequest("r", "m", (1,), SamplingParams(), artifact_key=artifact_key)


@pytest.mark.parametrize("wanted", ["v1", ""])
async def test_a_lease_of_the_same_weights_is_given(wanted: str) -> None:
    lease = Lease("v1")
    assert await acquire(Source(lease), request_for(wanted)) is lease
    assert not lease.released


async def test_a_lease_of_other_weights_is_given_back_and_the_request_fails() -> None:
    lease = Lease("v2")
    with pytest.raises(ModelUnavailableError, match="another version") as caught:
        await acquire(Source(lease), request_for("v1"))
    assert caught.value.code == "model_changed"
    assert lease.released


class Worker:
    def __init__(self) -> None:
        self.submitted: list[SequenceRequest] = []
        self.has_any = asyncio.Event()

    def submit(self, request: SequenceRequest, sink: SequenceSink) -> None:
        self.submitted.append(request)
        self.has_any.set()

    def cancel(self, sequence_ids: Sequence[int]) -> None:
        pass

    @property
    def death(self) -> WorkerDeath:
        raise NotImplementedError


@pytest.mark.parametrize(("promised_s", "told_s"), [(0.05, 0.05), (None, math.inf)])
async def test_a_worker_is_told_what_is_promised_of_the_further_tokens(
    promised_s: float | None, told_s: float
) -> None:
    worker = Worker()
    request = replace(request_for("v1"), tpot_target_s=promised_s)
    stream = await Dispatcher(Source(Lease("v1")), lambda _: worker).generate(request)
    await worker.has_any.wait()
    assert [each.tpot_target_s for each in worker.submitted] == [told_s]
    await stream.aclose()


async def test_a_stream_says_what_was_predicted_when_its_request_was_accepted() -> None:
    def no_worker(worker_id: str) -> WorkerClient:
        raise WorkerLostError("gone")

    stream = await Dispatcher(Source(Lease("v1")), no_worker).generate(request_for("v1"))
    assert stream.predicted_ttft_s == 0.25
    await stream.aclose()
