"""The gate: who is inside is counted, once, and the end of the server reaches everybody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from engines.api import ChoiceTokens, Finished, FinishReason, SamplingParams
from mooring.errors import OverloadedError, ShuttingDownError
from router.dispatch.gate import Gate
from router.request.request import GenerationRequest, TokenStream

SAMPLING = SamplingParams(max_tokens=8, seed=0)
REQUEST = GenerationRequest(request_id="r", deployment="m", prompt_ids=(1,), sampling=SAMPLING)


class Stream:
    """A token each time ``more`` is set; ends when it is closed, as the dispatcher's does."""

    predicted_ttft_s = 0.5

    def __init__(self) -> None:
        self.more = asyncio.Event()
        self.num_closed = 0
        self.stopped: list[int] = []

    async def __aiter__(self) -> AsyncIterator[list[ChoiceTokens]]:
        while True:
            await self.more.wait()
            if self.num_closed:
                return
            self.more.clear()
            yield [ChoiceTokens(0, [7], finished=Finished(1, FinishReason.LENGTH))]

    def stop(self, index: int) -> None:
        self.stopped.append(index)

    async def aclose(self) -> None:
        self.num_closed += 1
        self.more.set()


class Source:
    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self.admitted = asyncio.Event()
        self.admitted.set()

    async def generate(self, request: GenerationRequest) -> Stream:
        await self.admitted.wait()
        if request.deployment == "full":
            raise OverloadedError("full")
        self.streams.append(Stream())
        return self.streams[-1]


async def test_it_is_empty_until_somebody_is_inside_and_again_when_each_has_closed_once() -> None:
    gate = Gate(Source())
    assert await gate.wait_empty(0)
    first, second = await gate.generate(REQUEST), await gate.generate(REQUEST)
    assert not await gate.wait_empty(0)
    await first.aclose()
    await first.aclose()
    assert not await gate.wait_empty(0), "one close too many must not count for the other"
    await second.aclose()
    assert await gate.wait_empty(0)


async def test_tokens_and_stops_pass_through() -> None:
    source = Source()
    stream = await Gate(source).generate(REQUEST)
    assert stream.predicted_ttft_s == 0.5
    source.streams[0].more.set()
    assert (await anext(aiter(stream)))[0].token_ids == [7]
    stream.stop(3)
    assert source.streams[0].stopped == [3]


async def test_who_is_refused_or_gives_up_waiting_is_not_inside() -> None:
    source = Source()
    gate = Gate(source)
    full = GenerationRequest(request_id="r", deployment="full", prompt_ids=(1,), sampling=SAMPLING)
    with pytest.raises(OverloadedError):
        await gate.generate(full)
    source.admitted.clear()
    waiting = asyncio.create_task(gate.generate(REQUEST))
    await asyncio.sleep(0)
    assert not await gate.wait_empty(0), "who waits for a model is inside"
    waiting.cancel()
    await asyncio.wait([waiting])
    assert await gate.wait_empty(0)


async def test_once_shut_it_refuses_new_requests_and_those_inside_go_on() -> None:
    source = Source()
    gate = Gate(source)
    stream = await gate.generate(REQUEST)
    gate.shut()
    with pytest.raises(ShuttingDownError) as refused:
        await gate.generate(REQUEST)
    assert refused.value.retry_after_s
    source.streams[0].more.set()
    assert await anext(aiter(stream))
    emptied = asyncio.create_task(gate.wait_empty(5))
    await stream.aclose()
    assert await emptied


async def test_who_is_cut_off_learns_why() -> None:
    source = Source()
    gate = Gate(source)
    streams = [await gate.generate(REQUEST) for _ in range(3)]

    async def read(stream: TokenStream) -> list[ChoiceTokens]:
        return await anext(aiter(stream))

    readers = [asyncio.create_task(read(stream)) for stream in streams]
    await asyncio.sleep(0)
    gate.shut()
    await gate.cut_off()
    for ended in await asyncio.gather(*readers, return_exceptions=True):
        assert isinstance(ended, ShuttingDownError)
    assert [stream.num_closed for stream in source.streams] == [1, 1, 1]
    for stream in streams:
        await stream.aclose()
    assert await gate.wait_empty(0)


async def test_a_stream_that_has_ended_by_itself_just_ends() -> None:
    source = Source()
    stream = await Gate(source).generate(REQUEST)
    await source.streams[0].aclose()
    assert [tokens async for tokens in stream] == []
