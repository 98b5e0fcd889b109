"""The descriptor channel, both ends in one process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import psutil
import pytest

from engines.link.descriptors import DescriptorReceiver, DescriptorSender, open_channel
from mooring.errors import InternalError, WorkerLostError


@dataclass
class Pair:
    sender: DescriptorSender
    receiver: DescriptorReceiver
    closed: asyncio.Event = field(default_factory=asyncio.Event)


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    ours, theirs = open_channel()
    closed = asyncio.Event()
    pair = Pair(DescriptorSender(ours, "w"), DescriptorReceiver(theirs, closed.set), closed)
    pair.receiver.start()
    yield pair
    pair.sender.close()
    pair.receiver.close()


def memfd(content: bytes) -> int:
    descriptor = os.memfd_create("test")
    os.write(descriptor, content)
    return descriptor


async def send(pair: Pair, content: bytes) -> str:
    descriptor = memfd(content)
    try:
        return await pair.sender.send("key", descriptor)
    finally:
        os.close(descriptor)


async def test_what_is_claimed_reads_what_was_sent(pair: Pair) -> None:
    first, second = await send(pair, b"first"), await send(pair, b"second")
    assert first != second, "two loads of one artifact have a name each"
    for name, content in ((second, b"second"), (first, b"first")):
        descriptor = await pair.receiver.claim(name, timeout_s=20)
        assert os.pread(descriptor, 10, 0) == content
        os.close(descriptor)


async def test_a_claim_waits_for_what_is_still_on_its_way(pair: Pair) -> None:
    claim = asyncio.create_task(pair.receiver.claim("key#1", timeout_s=20))
    await asyncio.sleep(0.01)
    await send(pair, b"late")
    os.close(await claim)


async def test_a_claim_of_what_never_comes_says_so(pair: Pair) -> None:
    with pytest.raises(InternalError, match=r"did not arrive within 0.01 s"):
        await pair.receiver.claim("key#9", timeout_s=0.01)


async def test_what_nobody_claims_is_closed_in_the_end(pair: Pair) -> None:
    before = psutil.Process().num_fds()
    for _ in range(200):
        await send(pair, b"x")
        await asyncio.sleep(0)
    await asyncio.sleep(0.05)
    assert psutil.Process().num_fds() - before <= 64


async def test_a_full_channel_makes_the_sender_wait_and_loses_nothing() -> None:
    ours, theirs = open_channel()
    sender, receiver = DescriptorSender(ours, "w"), DescriptorReceiver(theirs, lambda: None)
    descriptor = memfd(b"x")

    async def send_many() -> list[str]:
        return [await sender.send("key", descriptor) for _ in range(600)]

    sending = asyncio.create_task(send_many())
    await asyncio.sleep(0.02)
    assert not sending.done(), "600 messages are more than the socket's buffer holds"
    receiver.start()
    async with asyncio.timeout(20):
        names = await sending
    os.close(await receiver.claim(names[-1], timeout_s=20))
    os.close(descriptor)
    sender.close()
    receiver.close()


async def test_the_worker_notices_that_the_server_is_gone(pair: Pair) -> None:
    pair.sender.close()
    async with asyncio.timeout(20):
        await pair.closed.wait()


async def test_the_server_notices_that_the_worker_is_gone() -> None:
    ours, theirs = open_channel()
    sender = DescriptorSender(ours, "w")
    theirs.close()
    with pytest.raises(WorkerLostError):
        await sender.wait_ready()
    with pytest.raises(WorkerLostError):
        await sender.send("key", 0)
    sender.close()


async def test_ready_is_told_once_the_worker_listens(pair: Pair) -> None:
    async with asyncio.timeout(20):
        await pair.sender.wait_ready()
