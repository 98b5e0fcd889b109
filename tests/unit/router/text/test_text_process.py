"""The server's end of a text's process, against a process that the test plays."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from mooring.errors import ContextLengthError, InternalError
from router.text.frames import Frame, FrameKind, FrameReader, pack_frame
from router.text.process import ProcessLostError, TextProcess, TookTooLongError
from router.text.starter import StartedProcess

CALL = {"do": "encode"}


@dataclass
class Played:
    """The other end of the socket."""

    server: TextProcess
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def frames(self, num_frames: int) -> list[Frame]:
        read: list[Frame] = []
        frames = FrameReader()
        async with asyncio.timeout(20):
            while len(read) < num_frames:
                read += frames.feed(await self.reader.read(1 << 16))
        return read

    def answer(self, frame: Frame, kind: FrameKind = FrameKind.RESULT, **content: object) -> None:
        self.writer.write(pack_frame(frame.request_id, kind, content))

    async def killed(self) -> None:
        """Waits until the server has shut the connection, as it does when it kills the process."""
        async with asyncio.timeout(20):
            while await self.reader.read(1 << 16):
                pass


@asynccontextmanager
async def played(timeout_s: float = 20.0) -> AsyncIterator[Played]:
    ours, theirs = socket.socketpair()
    process = TextProcess(StartedProcess(ours, None), timeout_s)
    await process.connect()
    reader, writer = await asyncio.open_unix_connection(sock=theirs)
    try:
        yield Played(process, reader, writer)
    finally:
        process.close()
        writer.close()
        with pytest.raises(ProcessLostError):
            await process.ready


async def test_results_go_to_their_calls_in_whatever_order_they_come() -> None:
    async with played() as process:
        first, second, long = (
            process.server.call(CALL),
            process.server.call(CALL),
            process.server.long_call(CALL),
        )
        frames = await process.frames(3)
        assert [frame.kind for frame in frames] == [FrameKind.CALL, FrameKind.CALL, FrameKind.LONG_CALL]
        for number, frame in reversed(list(enumerate(frames))):
            process.answer(frame, number=number)
        assert [(await each).content["number"] for each in (first, second, long)] == [0, 1, 2]
        assert process.server.is_idle


async def test_refusals_are_the_errors_that_they_were() -> None:
    async with played() as process:
        calls = [process.server.call(CALL) for _ in range(2)]
        frames = await process.frames(2)
        process.answer(
            frames[0], FrameKind.ERROR, code="context_length_exceeded", message="long", param="prompt"
        )
        process.answer(frames[1], FrameKind.ERROR, code="no such code", message="x", param=None)
        with pytest.raises(ContextLengthError, match="long") as caught:
            await calls[0]
        assert caught.value.param == "prompt"
        with pytest.raises(InternalError):
            await calls[1]


async def test_at_an_end_the_first_call_was_at_work_and_no_other() -> None:
    async with played() as process:
        done, first, second, long = (
            process.server.call(CALL), process.server.call(CALL), process.server.call(CALL),
            process.server.long_call(CALL),
        )  # fmt: skip
        frames = await process.frames(4)
        process.answer(frames[0])
        await done
        process.writer.close()
        found = []
        for call in (first, second, long):
            with pytest.raises(ProcessLostError) as caught:
                await call
            found.append(caught.value.was_at_work)
        assert found == [True, False, False]
        assert process.server.is_lost
        with pytest.raises(ProcessLostError):
            await process.server.call(CALL)


async def test_at_an_end_with_long_calls_alone_each_of_them_was_at_work() -> None:
    async with played() as process:
        long = process.server.long_call(CALL)
        await process.frames(1)
        process.writer.close()
        with pytest.raises(ProcessLostError) as caught:
            await long
        assert caught.value.was_at_work


async def test_a_copy_that_died_takes_its_own_call_with_it() -> None:
    async with played() as process:
        long, other = process.server.long_call(CALL), process.server.long_call(CALL)
        frames = await process.frames(2)
        process.answer(frames[0], FrameKind.DIED)
        process.answer(frames[1])
        with pytest.raises(ProcessLostError) as caught:
            await long
        assert caught.value.was_at_work
        await other


async def test_a_call_that_takes_too_long_ends_the_process_and_loses_the_others() -> None:
    async with played(timeout_s=0.2) as process:
        slow, waiting = process.server.call(CALL), process.server.call(CALL)
        with pytest.raises(TookTooLongError):
            await slow
        await process.killed()
        with pytest.raises(ProcessLostError) as caught:
            await waiting
        assert not caught.value.was_at_work


async def test_time_counts_from_the_answer_before() -> None:
    """Three calls that are each answered in time, after longer than one may take together."""
    async with played(timeout_s=1.0) as process:
        calls = [process.server.call(CALL) for _ in range(3)]
        for frame in await process.frames(3):
            await asyncio.sleep(0.5)
            process.answer(frame)
        await asyncio.gather(*calls)


async def test_a_long_call_that_takes_too_long_ends_its_copy_alone() -> None:
    async with played(timeout_s=0.2) as process:
        with pytest.raises(TookTooLongError):
            await process.server.long_call(CALL)
        begun, cancelled = await process.frames(2)
        assert (cancelled.kind, cancelled.request_id) == (FrameKind.CANCEL, begun.request_id)
        assert not process.server.is_lost


async def test_whoever_leaves_ends_the_work_on_a_long_call() -> None:
    async with played() as process:
        call = process.server.long_call(CALL)
        await process.frames(1)
        call.cancel()
        [cancelled] = await process.frames(1)
        assert cancelled.kind is FrameKind.CANCEL


@pytest.mark.parametrize(
    "garbage", [b"\xff" * 64, pack_frame(1, FrameKind.ERROR, {"nothing": "of use"})], ids=["bytes", "error"]
)
async def test_a_process_that_says_what_it_should_not_is_ended(garbage: bytes) -> None:
    async with played() as process:
        call = process.server.call(CALL)
        await process.frames(1)
        process.writer.write(garbage)
        await process.killed()
        with pytest.raises(ProcessLostError):
            await call
