"""A request runs on the weights that it was made for, or not at all."""

from __future__ import annotations

import pytest

from engines.api import SamplingParams
from engines.supervise.client import WorkerClient
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
        tenant: str | None,
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


async def test_a_stream_says_what_was_predicted_when_its_request_was_accepted() -> None:
    def no_worker(worker_id: str) -> WorkerClient:
        raise WorkerLostError("gone")

    stream = await Dispatcher(Source(Lease("v1")), no_worker).generate(request_for("v1"))
    assert stream.predicted_ttft_s == 0.25
    await stream.aclose()
