"""Messages of a call whose client reads, or does not."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from google.protobuf.wrappers_pb2 import BytesValue

from router.doors.grpc.errors import Context
from router.doors.grpc.writing import MessageWriter
from router.request.reader_watch import SlowReaderError

SMALL = BytesValue(value=b"a")
LARGE = BytesValue(value=bytes(1 << 20))


class Reader:
    """A client that takes so many messages and then no more."""

    def __init__(self, num_messages: int) -> None:
        self.rest = num_messages
        self.waits = asyncio.Event()

    async def write(self, message: Any) -> None:
        if not self.rest:
            self.waits.set()
            await asyncio.Event().wait()
        self.rest -= 1
        await asyncio.sleep(0)


def writer(reader: Reader, max_stall_s: float) -> MessageWriter:
    return MessageWriter(cast(Context, reader), max_stall_s)


@pytest.mark.parametrize("first", [SMALL, LARGE])
async def test_who_reads_no_more_is_given_up(first: BytesValue) -> None:
    reader = Reader(num_messages=3)
    async with asyncio.timeout(10):
        with writer(reader, max_stall_s=0.05) as sending:
            for message in (first, SMALL, SMALL):
                await sending.write(message)
            with pytest.raises(SlowReaderError):
                await sending.write(SMALL)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_large_message_has_more_time() -> None:
    reader = Reader(num_messages=0)
    with writer(reader, max_stall_s=0.05) as sending:
        task = asyncio.create_task(sending.write(LARGE))
        await reader.waits.wait()
        await asyncio.sleep(0.2)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_who_ends_the_call_is_not_taken_for_a_slow_reader() -> None:
    reader = Reader(num_messages=0)
    with writer(reader, max_stall_s=3600) as sending:
        task = asyncio.create_task(sending.write(SMALL))
        await reader.waits.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
