"""One real worker process with the null engine, through its client."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace

import grpc.aio
import numpy as np
import psutil
import pytest
from support.null_worker import (
    MAX_MODEL_LEN,
    WEIGHTS_BYTES,
    Collected,
    NullFleet,
    deployment,
    expected_tokens,
    load,
    null_fleet,
    sequence,
    until,
)

from engines.api import REPLICA_UNLOADED, FinishReason, SamplingParams, SequenceRequest
from engines.config import ClientConfig
from engines.link.descriptors import DescriptorSender, open_channel
from engines.link.wire import ids_to_wire, sequence_to_wire
from engines.supervise.client import WorkerClient
from memory_manager.ports import LeaseStatus
from mooring.errors import NotFoundError, WorkerLostError
from mooring.v1 import engine_pb2 as pb
from mooring.v1 import engine_pb2_grpc

pytestmark = pytest.mark.integration


@pytest.fixture
async def fleet() -> AsyncIterator[NullFleet]:
    async with null_fleet() as fleet:
        yield fleet


async def running(client: WorkerClient) -> int:
    return sum(replica.num_running for replica in (await client.stats()).replicas)


def socket_of(fleet: NullFleet) -> str:
    [socket_path] = [
        connection.laddr
        for connection in psutil.Process(fleet.pid).net_connections("unix")
        if str(connection.laddr).endswith(".sock") and connection.status == psutil.CONN_NONE
    ][:1]
    return str(socket_path)


async def second_router(fleet: NullFleet) -> WorkerClient:
    """Another client of the same life of the worker, as another router process would be."""
    ours, theirs = open_channel()
    theirs.close()
    client = WorkerClient("cpu-0", socket_of(fleet), DescriptorSender(ours, "cpu-0"), ClientConfig())
    await client.connect()
    return client


async def test_a_sequence_streams_token_by_token_to_its_end(fleet: NullFleet) -> None:
    sink = Collected()
    fleet.client.submit(sequence(1, max_tokens=20), sink)
    end = await sink.end()
    assert sink.token_ids == expected_tokens((1, 2, 3), 20)
    assert all(len(chunk.token_ids) == 1 for chunk in sink.chunks), "one step, one token"
    assert end.finished is not None
    assert end.finished.reason is FinishReason.LENGTH
    assert end.token_ids, "the last token and the end come together"


async def test_steps_tell_their_seconds_and_what_each_sequence_computed(fleet: NullFleet) -> None:
    earlier = expected_tokens((1, 2, 3), 4)
    requests = [sequence(1, (1, 2, 3, 4, 5), max_tokens=3), sequence(2, max_tokens=6)]
    requests[1] = replace(requests[1], output_ids=np.array(earlier, np.int32))
    async with grpc.aio.insecure_channel(f"unix:{socket_of(fleet)}") as channel, asyncio.timeout(20):
        call = engine_pb2_grpc.EngineStub(channel).Generate()  # type: ignore[no-untyped-call]
        for request in requests:
            submit = pb.Submit(
                prompt_ids=ids_to_wire(request.prompt_ids), sequences=[sequence_to_wire(request, now_s=0.0)]
            )
            await call.write(pb.GenerateRequest(submit=submit))
        await call.done_writing()
        steps = [step async for message in call for step in (message, *message.following)]
    computed: dict[int, list[int]] = {}
    for step in steps:
        assert step.computed_ids == step.sequence_ids
        assert 0.001 <= step.seconds < 10, "a step of this worker sleeps for a millisecond"
        for sequence_id, num_tokens in zip(step.computed_ids, step.num_computed, strict=True):
            computed.setdefault(sequence_id, []).append(num_tokens)
    assert computed == {1: [5, 1, 1], 2: [3 + 4, 1]}


async def test_output_of_an_earlier_life_is_counted_and_not_sent_again(fleet: NullFleet) -> None:
    tokens = expected_tokens((1, 2, 3), 20)
    sink = Collected()
    request = sequence(1, max_tokens=20)
    fleet.client.submit(
        type(request)(1, "m/0", (1, 2, 3), request.sampling, output_ids=tuple(tokens[:12])), sink
    )
    await sink.end()
    assert sink.token_ids == tokens[12:]


async def test_logprobs_and_stop_tokens_cross_the_wire(fleet: NullFleet) -> None:
    tokens = expected_tokens((1, 2, 3), 3)
    sink = Collected()
    fleet.client.submit(sequence(1, max_tokens=20, stop_token_ids=(tokens[2],), logprobs=2), sink)
    end = await sink.end()
    assert end.finished is not None
    assert (end.finished.reason, end.finished.stop_token_id) == (FinishReason.STOP, tokens[2])
    tops = [top for chunk in sink.chunks for top in chunk.logprobs]
    assert [top.token_ids[0] for top in tops] == sink.token_ids == tokens
    assert all(len(top.logprobs) == 2 for top in tops)


async def test_a_prompt_is_sent_once_for_all_choices_of_a_request(fleet: NullFleet) -> None:
    prompt_ids = np.arange(MAX_MODEL_LEN - 10, dtype=np.int32)
    sinks = [Collected() for _ in range(4)]
    for choice, sink in enumerate(sinks):
        params = SamplingParams(max_tokens=8, choice=choice)
        fleet.client.submit(SequenceRequest(choice + 1, "m/0", prompt_ids, params), sink)
    [command] = fleet.client._commands
    assert command.ByteSize() < 4 * len(prompt_ids) + 500
    other = Collected()
    fleet.client.submit(SequenceRequest(9, "m/0", prompt_ids.copy(), SamplingParams(max_tokens=8)), other)
    assert len(fleet.client._commands) == 2
    for sink in (*sinks, other):
        await sink.end()
        assert sink.token_ids == expected_tokens(prompt_ids, 8)
    assert [sink.chunks[0].index for sink in sinks] == [0, 1, 2, 3]


async def test_prompt_logprobs_come_once_with_the_first_token(fleet: NullFleet) -> None:
    asked, others, short = Collected(), Collected(), Collected()
    fleet.client.submit(sequence(1, (5, 6, 7), max_tokens=4, prompt_logprobs=2), asked)
    fleet.client.submit(sequence(2, (5, 6, 7), max_tokens=4), others)
    fleet.client.submit(sequence(3, (5,), max_tokens=4, prompt_logprobs=2), short)
    for sink in (asked, others, short):
        await sink.end()
    assert [chunk.first is not None for chunk in asked.chunks] == [True, False, False, False]
    first = asked.chunks[0].first.prompt_logprobs
    assert [top.token_ids[0] for top in first] == [6, 7], "of every token but the first"
    assert all(len(set(top.token_ids)) == len(top.logprobs) == 2 for top in first)
    assert all(top.logprob == top.logprobs[0] > top.logprobs[1] for top in first)
    assert others.chunks[0].first.prompt_logprobs is None
    assert short.chunks[0].first.prompt_logprobs == []


async def test_the_null_engine_accepts_biases_and_bad_words(fleet: NullFleet) -> None:
    sink = Collected()
    tokens = expected_tokens((1, 2, 3), 5)
    choices = {"logit_bias": ((tokens[0], -100.0),), "bad_words_ids": ((tokens[1],), (5, 6))}
    fleet.client.submit(sequence(1, max_tokens=5, **choices), sink)
    await sink.end()
    assert sink.token_ids == tokens


async def test_a_prompt_beyond_the_context_ends_with_its_own_code(fleet: NullFleet) -> None:
    sink = Collected()
    fleet.client.submit(sequence(1, prompt_ids=(7,) * MAX_MODEL_LEN), sink)
    end = await sink.end()
    assert end.finished is not None
    assert end.finished.error_code == "context_length_exceeded"


async def test_cancel_frees_at_the_next_step_and_silences_the_sink() -> None:
    async with null_fleet(step_time_s=0.01) as fleet:  # by itself it would end after 40 s
        sink = Collected()
        fleet.client.submit(sequence(1, max_tokens=4000), sink)
        await sink.started.wait()
        fleet.client.cancel([1])
        num_tokens = len(sink.token_ids)

        async def idle() -> bool:
            return await running(fleet.client) == 0

        await until(idle)
        assert len(sink.token_ids) == num_tokens
        assert not sink.ends


async def test_two_routers_with_the_same_ids_do_not_meet_and_one_leaving_takes_only_its_own(
    fleet: NullFleet,
) -> None:
    other = await second_router(fleet)
    ours, theirs = Collected(), Collected()
    fleet.client.submit(sequence(1, prompt_ids=(1,), max_tokens=2000), ours)
    other.submit(sequence(1, prompt_ids=(2,), max_tokens=4000), theirs)
    await asyncio.gather(ours.started.wait(), theirs.started.wait())
    assert await running(fleet.client) == 2
    await other.close()

    async def alone() -> bool:
        return await running(fleet.client) <= 1

    await until(alone)
    assert not ours.ends
    await ours.end()
    assert ours.token_ids == expected_tokens((1,), 2000)
    assert theirs.token_ids == expected_tokens((2,), len(theirs.token_ids))
    assert theirs.ends[0].finished is not None
    assert theirs.ends[0].finished.error_code == "worker_lost"


async def test_sleep_parks_what_runs_wake_lets_it_go_on_and_unload_ends_it(fleet: NullFleet) -> None:
    client = fleet.client
    sinks = [Collected() for _ in range(3)]
    for number, sink in enumerate(sinks[:2]):
        client.submit(sequence(number, max_tokens=4000), sink)
        await sink.started.wait()
    assert await client.sleep("m/0") == WEIGHTS_BYTES
    assert await client.sleep("m/0") == 0, "sleeping what sleeps changes nothing"
    client.submit(sequence(2, max_tokens=8), sinks[2])
    [replica] = (await client.stats()).replicas
    assert (replica.residency, replica.weights_bytes) == ("warm", 0)
    assert (replica.num_running, replica.num_queued) == (0, 3)
    num_tokens = [len(sink.token_ids) for sink in sinks]
    await asyncio.sleep(0.05)
    assert [len(sink.token_ids) for sink in sinks] == num_tokens
    assert await client.wake("m/0", WEIGHTS_BYTES) == WEIGHTS_BYTES
    await sinks[2].end()
    assert sinks[2].token_ids == expected_tokens((1, 2, 3), 8)
    client.cancel([1])
    await client.unload("m/0")
    end = await sinks[0].end()
    assert end.finished is not None
    assert end.finished.error_code == REPLICA_UNLOADED
    assert sinks[0].token_ids == expected_tokens((1, 2, 3), len(sinks[0].token_ids))
    assert len(sinks[0].token_ids) > num_tokens[0]


async def test_the_verbs_are_idempotent_and_their_errors_keep_their_kind(fleet: NullFleet) -> None:
    client = fleet.client
    num_fds = psutil.Process(fleet.pid).num_fds()
    assert await load(client, "m/0") == WEIGHTS_BYTES
    assert psutil.Process(fleet.pid).num_fds() == num_fds, "a second load keeps no second descriptor"
    await client.unload("m/0")
    await client.unload("m/0")
    with pytest.raises(NotFoundError, match="m/0"):
        await client.sleep("m/0")


async def test_leases_are_absolute_and_revisioned(fleet: NullFleet) -> None:
    client = fleet.client
    assert await client.set_lease(100, 5) is LeaseStatus.APPLIED
    assert await client.set_lease(100, 5) is LeaseStatus.APPLIED
    assert await client.set_lease(200, 4) is LeaseStatus.STALE
    assert await client.set_lease(200, 5) is LeaseStatus.CONFLICT
    stats = await client.stats()
    assert (stats.kv_lease_bytes, stats.kv_lease_revision) == (100, 5)


async def test_death_ends_every_sequence_once_and_every_call_with_worker_lost(fleet: NullFleet) -> None:
    client = fleet.client
    sinks = [Collected() for _ in range(8)]
    for number, sink in enumerate(sinks):
        client.submit(sequence(number, max_tokens=4000), sink)
    await sinks[0].started.wait()
    os.kill(fleet.pid, signal.SIGKILL)
    for sink in sinks:
        await sink.end()
        [end] = sink.ends
        assert end.finished is not None
        assert (end.finished.reason, end.finished.error_code) == (FinishReason.ERROR, "worker_lost")
    with pytest.raises(WorkerLostError):
        client.submit(sequence(99), Collected())
    with pytest.raises(WorkerLostError):
        await client.stats()
    await until_lost_calls_raise(client)


async def until_lost_calls_raise(client: WorkerClient) -> None:
    """Also a call that needs the descriptor channel, which may not be closed yet."""
    descriptor = os.memfd_create("late")
    try:
        with pytest.raises(WorkerLostError):
            await client.load("m/1", deployment(), descriptor)
    finally:
        os.close(descriptor)


async def test_sigterm_drains_then_ends(fleet: NullFleet) -> None:
    client = fleet.client
    process = psutil.Process(fleet.pid)
    old = Collected()
    client.submit(sequence(1, max_tokens=2000), old)
    await old.started.wait()
    os.kill(process.pid, signal.SIGTERM)
    code, number = "", 1
    while not code:  # what comes before the signal is still served
        number += 1
        new = Collected()
        client.submit(sequence(number, max_tokens=1), new)
        end = (await new.end()).finished
        assert end is not None
        code = end.error_code
    assert code == "shutting_down"
    await old.end()
    assert old.token_ids == expected_tokens((1, 2, 3), 2000)
    await client.wait_lost()


async def test_an_idle_worker_sleeps(fleet: NullFleet) -> None:
    process = psutil.Process(fleet.pid)
    sink = Collected()
    fleet.client.submit(sequence(1), sink)
    await sink.end()
    before_s = sum(process.cpu_times()[:2])
    await asyncio.sleep(2.0)
    assert sum(process.cpu_times()[:2]) - before_s <= 0.1
