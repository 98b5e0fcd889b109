"""The dispatcher over real workers that die, sleep and refuse."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace

import pytest
from support.null_worker import (
    MAX_MODEL_LEN,
    POISON_PROGRAM,
    WEIGHTS_BYTES,
    NullFleet,
    expected_tokens,
    null_fleet,
    until,
)
from support.poison_worker import CRASHES_ID, HANGS_ID, IS_KILLED_ID

from engines.api import FinishReason, SamplingParams
from engines.supervise import supervisor
from mooring.errors import ContextLengthError, PoisonousRequestError
from router.dispatch.dispatch import DispatchConfig, Dispatcher, RequestStream
from router.request.request import GenerationRequest

pytestmark = pytest.mark.integration


def request(prompt_ids: tuple[int, ...], max_tokens: int, n: int = 1) -> GenerationRequest:
    return GenerationRequest("r", "m", prompt_ids, SamplingParams(max_tokens=max_tokens), n=n)


async def read(stream: RequestStream) -> dict[int, list[int]]:
    """All tokens by choice; every choice must end with a reason."""
    tokens: dict[int, list[int]] = {}
    reasons: dict[int, FinishReason] = {}
    async with asyncio.timeout(30):
        async for chunks in stream:
            for chunk in chunks:
                tokens.setdefault(chunk.index, []).extend(chunk.token_ids)
                if chunk.finished is not None:
                    assert chunk.index not in reasons
                    reasons[chunk.index] = chunk.finished.reason
    assert reasons.keys() == tokens.keys()
    return tokens


def dispatcher(fleet: NullFleet) -> Dispatcher:
    return Dispatcher(fleet, fleet.supervisor.client)


async def idle(fleet: NullFleet) -> bool:
    return not await is_running(fleet)


async def is_running(fleet: NullFleet) -> bool:
    return any(replica.num_running for replica in (await fleet.client.stats()).replicas)


async def test_choices_of_one_request() -> None:
    async with null_fleet() as fleet:
        stream = await dispatcher(fleet).generate(request((4, 5), 30, n=3))
        assert await read(stream) == dict.fromkeys(range(3), expected_tokens((4, 5), 30))
        assert not fleet.tickets


async def test_streams_go_on_where_they_were_when_the_worker_is_killed() -> None:
    async with null_fleet(step_time_s=0.002) as fleet:
        dispatch = dispatcher(fleet)
        prompts = [(number, 7) for number in range(16)]
        streams = [await dispatch.generate(request(prompt, 600)) for prompt in prompts]
        reads = [asyncio.create_task(read(stream)) for stream in streams]
        await asyncio.sleep(0.1)
        os.kill(fleet.pid, signal.SIGKILL)
        for prompt, tokens in zip(prompts, await asyncio.gather(*reads), strict=True):
            assert tokens == {0: expected_tokens(prompt, 600)}
        assert fleet.num_deaths == 1
        assert not fleet.tickets


@pytest.mark.parametrize("pause_s", [0.0, 0.05], ids=["before the first token", "after it"])
async def test_prompt_logprobs_come_once_and_of_one_choice_whenever_the_worker_dies(pause_s: float) -> None:
    async with null_fleet(step_time_s=0.02) as fleet:
        asked = SamplingParams(max_tokens=60, prompt_logprobs=1)
        stream = await dispatcher(fleet).generate(GenerationRequest("r", "m", (4, 5, 6), asked, n=2))
        await asyncio.sleep(pause_s)
        os.kill(fleet.pid, signal.SIGKILL)
        chunks = []
        async with asyncio.timeout(10):
            async for step in stream:
                chunks += step
        assert fleet.num_deaths == 1
    told = [(c.index, c.first.prompt_logprobs) for c in chunks if c.first is not None]
    [(index, found)] = [(index, tops) for index, tops in told if tops is not None]
    assert (index, [top.token_ids for top in found]) == (0, [(5,), (6,)])
    assert next(chunk for chunk in chunks if chunk.index == 0).first.prompt_logprobs is found


@pytest.mark.parametrize("killer_ids", [(CRASHES_ID,), (IS_KILLED_ID,)], ids=["crashes", "is killed"])
async def test_one_killer_among_32_requests_fails_and_the_others_end_well(
    killer_ids: tuple[int, ...],
) -> None:
    async with null_fleet(POISON_PROGRAM, step_time_s=0.002) as fleet:
        dispatch = dispatcher(fleet)
        prompts = [(number, 7) for number in range(31)]
        streams = [await dispatch.generate(request(prompt, 100)) for prompt in prompts]
        killer = await dispatch.generate(request(killer_ids, 100))
        reads = [asyncio.create_task(read(stream)) for stream in streams]
        with pytest.raises(PoisonousRequestError, match="more than once"):
            await read(killer)
        late = await dispatch.generate(request((9, 9), 20))
        assert await read(late) == {0: expected_tokens((9, 9), 20)}
        for prompt, tokens in zip(prompts, await asyncio.gather(*reads), strict=True):
            assert tokens == {0: expected_tokens(prompt, 100)}
        first_kill = killer_ids == (IS_KILLED_ID,)  # which blames nobody
        assert 2 <= fleet.num_deaths <= 5 + 2 + first_kill
        assert not fleet.tickets


async def test_a_worker_that_takes_long_to_die_hides_no_killer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process with much memory is reaped seconds after its stream has ended: no time is given to it here."""
    monkeypatch.setattr(supervisor, "_EXIT_S", 0.0)
    async with null_fleet(POISON_PROGRAM, step_time_s=0.002) as fleet:
        stream = await dispatcher(fleet).generate(request((CRASHES_ID, 7), 100))
        with pytest.raises(PoisonousRequestError):
            await read(stream)
        assert fleet.num_deaths == 2


async def test_killers_among_the_choices_of_many_requests_all_fail() -> None:
    async with null_fleet(POISON_PROGRAM, step_time_s=0.002) as fleet:
        dispatch = dispatcher(fleet)
        prompts = [(number, 7) for number in range(6)]
        streams = [await dispatch.generate(request(prompt, 60, n=2)) for prompt in prompts]
        killers = [await dispatch.generate(request((CRASHES_ID, number), 60, n=2)) for number in range(3)]
        reads = [asyncio.create_task(read(stream)) for stream in streams]
        ends = await asyncio.gather(*(read(killer) for killer in killers), return_exceptions=True)
        assert [type(end) for end in ends] == [PoisonousRequestError] * 3
        for prompt, tokens in zip(prompts, await asyncio.gather(*reads), strict=True):
            assert tokens == dict.fromkeys(range(2), expected_tokens(prompt, 60))
        assert not fleet.tickets


async def test_a_worker_whose_step_hangs_is_replaced_and_other_streams_go_on() -> None:
    async with null_fleet(POISON_PROGRAM, step_time_s=0.002, max_stall_s=0.5) as fleet:
        dispatch = dispatcher(fleet)
        prompts = [(number, 7) for number in range(6)]
        streams = [await dispatch.generate(request(prompt, 100)) for prompt in prompts]
        hanging = await dispatch.generate(request((HANGS_ID,), 100))
        reads = [asyncio.create_task(read(stream)) for stream in streams]
        with pytest.raises(PoisonousRequestError):
            await read(hanging)
        for prompt, tokens in zip(prompts, await asyncio.gather(*reads), strict=True):
            assert tokens == {0: expected_tokens(prompt, 100)}
        assert fleet.num_deaths >= 2
        assert not fleet.tickets


async def test_a_parked_request_goes_on_after_a_death_and_nobody_is_blamed() -> None:
    async with null_fleet(step_time_s=0.002) as fleet:
        config = DispatchConfig(clear_after_tokens=4000)  # blamed once, it would fail the next time
        dispatch = Dispatcher(fleet, fleet.supervisor.client, config)
        stream = await dispatch.generate(request((1,), 600, n=2))
        reading = asyncio.create_task(read(stream))
        for num_deaths in (1, 2):
            await until(lambda: is_running(fleet))
            await fleet.client.sleep("m/0")
            os.kill(fleet.pid, signal.SIGABRT)
            await until(lambda: asyncio.sleep(0, fleet.num_deaths == num_deaths))  # noqa: B023
            await fleet.resident.wait()
        assert await reading == dict.fromkeys(range(2), expected_tokens((1,), 600))
        assert not fleet.tickets


async def test_a_parked_request_that_is_closed_frees_the_worker_and_the_ticket() -> None:
    async with null_fleet(step_time_s=0.01) as fleet:
        stream = await dispatcher(fleet).generate(request((1,), 4000))
        await anext(stream)
        await fleet.client.sleep("m/0")
        await stream.aclose()
        assert not fleet.tickets
        await until(lambda: asleep_without_sequences(fleet))


async def asleep_without_sequences(fleet: NullFleet) -> bool:
    [replica] = (await fleet.client.stats()).replicas
    return replica.residency == "warm" and not replica.num_queued


async def test_a_request_goes_on_when_its_replica_wakes_and_elsewhere_when_it_is_unloaded() -> None:
    async with null_fleet(step_time_s=0.002) as fleet:
        stream = await dispatcher(fleet).generate(request((1,), 100, n=2))
        reading = asyncio.create_task(read(stream))
        await asyncio.sleep(0.05)
        await fleet.client.sleep("m/0")
        assert len(fleet.tickets) == 1
        await asyncio.sleep(0.05)
        await fleet.client.wake("m/0", WEIGHTS_BYTES)
        await asyncio.sleep(0.02)
        fleet.resident.clear()
        await fleet.client.unload("m/0")
        await fleet.load_again()
        assert await reading == dict.fromkeys(range(2), expected_tokens((1,), 100))
        assert fleet.num_deaths == 0


async def test_closing_a_stream_frees_the_worker_and_the_ticket() -> None:
    async with null_fleet(step_time_s=0.01) as fleet:  # by itself it would end after 40 s
        stream = await dispatcher(fleet).generate(request((1,), 4000))
        await anext(stream)
        await stream.aclose()
        assert not fleet.tickets
        await until(lambda: idle(fleet))
        await stream.aclose()
        assert [chunks async for chunks in stream] == []


async def test_closing_before_anything_ran_gives_the_ticket_back() -> None:
    async with null_fleet() as fleet:
        stream = await dispatcher(fleet).generate(request((1,), 4000))
        assert fleet.tickets
        await stream.aclose()
        assert not fleet.tickets
        assert await idle(fleet)


async def test_closing_while_it_waits_for_the_next_life_leaves_no_trace() -> None:
    async with null_fleet(step_time_s=0.002) as fleet:
        dispatch = dispatcher(fleet)
        streams = [await dispatch.generate(request((number,), 200)) for number in range(3)]
        await asyncio.gather(*(anext(stream) for stream in streams))
        os.kill(fleet.pid, signal.SIGKILL)
        await until(lambda: asyncio.sleep(0, not fleet.tickets))
        await streams[0].aclose()
        await streams[1].aclose()
        async with asyncio.timeout(20):
            async for _ in streams[2]:
                pass
        assert not fleet.tickets


async def test_a_stopped_choice_says_no_more_and_the_others_go_on() -> None:
    async with null_fleet() as fleet:
        stream = await dispatcher(fleet).generate(request((1,), 300, n=2))
        await anext(stream)
        stream.stop(0)
        rest = [chunk async for chunks in stream for chunk in chunks]
        assert {chunk.index for chunk in rest} == {1}
        assert rest[-1].finished.reason is FinishReason.LENGTH


async def test_what_the_engine_refuses_is_raised_as_it_was_meant() -> None:
    async with null_fleet() as fleet:
        stream = await dispatcher(fleet).generate(request((1,) * MAX_MODEL_LEN, 4))
        with pytest.raises(ContextLengthError):
            await anext(stream)
        assert not fleet.tickets


async def test_a_slow_reader_gets_everything_at_once_and_holds_back_nobody() -> None:
    async with null_fleet(step_time_s=0.0) as fleet:
        dispatch = dispatcher(fleet)
        slow = await dispatch.generate(request((1,), 2000))
        quick = await dispatch.generate(request((2,), 2000))
        assert await read(quick) == {0: expected_tokens((2,), 2000)}
        await until(lambda: idle(fleet))
        assert await read(slow) == {0: expected_tokens((1,), 2000)}


async def test_the_engine_waits_for_a_reader_whose_backlog_is_full_and_goes_on_with_the_same_text() -> None:
    async with null_fleet(step_time_s=0.0) as fleet:
        dispatch = dispatcher(fleet)
        slow = await dispatch.generate(replace(request((1,), 2000, n=2), max_unread_tokens=200))
        quick = await dispatch.generate(request((2,), 2000))
        taken: dict[int, list[int]] = {0: [], 1: []}
        for _ in range(3):  # it is gone from the worker each time, although it has not ended
            await until(lambda: idle(fleet))
            await until(lambda: asyncio.sleep(0, not fleet.tickets))
            chunks = await anext(slow)
            num_new = sum(len(chunk.token_ids) for chunk in chunks)
            assert 200 <= num_new < 2000
            for chunk in chunks:
                taken[chunk.index] += chunk.token_ids
        assert await read(quick) == {0: expected_tokens((2,), 2000)}
        rest = await read(slow)
        assert {index: taken[index] + rest[index] for index in taken} == dict.fromkeys(
            range(2), expected_tokens((1,), 2000)
        )
        assert fleet.num_deaths == 0
        assert not fleet.tickets


async def test_closing_while_it_waits_for_its_reader_leaves_no_trace() -> None:
    async with null_fleet(step_time_s=0.0) as fleet:
        stream = await dispatcher(fleet).generate(replace(request((1,), 4000), max_unread_tokens=100))
        await until(lambda: asyncio.sleep(0, not fleet.tickets))
        async with asyncio.timeout(5):
            await stream.aclose()
        assert [chunks async for chunks in stream] == []
        assert await idle(fleet)
