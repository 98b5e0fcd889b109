"""Clients that stop reading for good are given up after a while, at every door; those that read on, however slowly,
are not, and nobody else notices."""

from __future__ import annotations

import asyncio
import re
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator

import grpc
import httpx
import psutil
import pytest
from support.pausing_readers import BODY, READERS, Texts, paused
from support.raw_http import RawClient, request
from support.running_server import RunningServer
from support.server_probes import Stream, check_idle, check_no_fault
from support.small_checkpoint import NULL_ENVIRONMENT, write_checkpoint
from websockets.exceptions import ConnectionClosed

from mooring.units import MIB

pytestmark = pytest.mark.integration

# The other two doors are in test_slow_readers.py; `make test-slow` has all four in both.
DOORS = [
    pytest.param(door, marks=[] if door in ("websocket", "kserve") else [pytest.mark.slow])
    for door in READERS
]
MAX_STALL_S = 1.5
NUM_PAUSED = 4
MAX_KEPT_BYTES = 64 * MIB
# Pieces that are read at a time. What a gRPC client has read is told to the server half a window at a time.
SLOWLY = {"http": 300, "websocket": 300, "grpc": 3000, "kserve": 3000}
ENVIRONMENT = {**NULL_ENVIRONMENT, "MOORING_LIMITS__MAX_READER_STALL_S": str(MAX_STALL_S)}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    root = tmp_path_factory.mktemp("given_up")
    flags = ["--engine", "null", "--memory-budget", "64MiB"]
    with RunningServer(root / "data", {"a": write_checkpoint(root / "a")}, flags, ENVIRONMENT) as running:
        yield running


def num_aborted(server: RunningServer) -> float:
    """Choices that were ended because their client was gone, or given up."""
    text = server.client.get(f"{server.http_url}/metrics").text
    found = re.findall(
        r'^vllm:request_success_total\{.*finished_reason="abort".*\} (\S+)$', text, re.MULTILINE
    )
    return sum(map(float, found))


async def until_aborted(server: RunningServer, num_choices: float) -> None:
    deadline = time.monotonic() + 6 * MAX_STALL_S
    while num_aborted(server) < num_choices:
        assert time.monotonic() < deadline, num_aborted(server)
        await asyncio.sleep(0.1)


async def read_on(pieces: AsyncIterator[tuple[int, str]]) -> None:
    async for _ in pieces:
        pass


@pytest.mark.parametrize("door", DOORS)
async def test_one_that_stands_still_is_given_up_and_all_that_it_held_is_free(
    server: RunningServer, door: str
) -> None:
    process = psutil.Process(server.process.pid)
    before, before_bytes = num_aborted(server), process.memory_full_info().uss
    contexts = [paused(server, door) for _ in range(NUM_PAUSED)]
    opened = [await context.__aenter__() for context in contexts]
    good = Stream(server, 400)
    await asyncio.to_thread(good.read)
    await until_aborted(server, before + NUM_PAUSED * BODY["n"])
    assert good.done
    assert len(good.text) == 400
    good.close()
    check_idle(server)
    assert process.memory_full_info().uss - before_bytes < MAX_KEPT_BYTES
    for pieces, _ in opened:  # what was on its way may still come; then it is told, if it can be
        with pytest.raises((ConnectionClosed, OSError, EOFError, ValueError, grpc.aio.AioRpcError)) as ended:
            await asyncio.wait_for(read_on(pieces), 20)
        if isinstance(ended.value, grpc.aio.AioRpcError):
            assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            trailing = dict(ended.value.trailing_metadata() or ())
            assert trailing.get("error-code") == "reader_too_slow"
    for context in contexts:
        await context.__aexit__(None, None, None)
    check_no_fault(server)


@pytest.mark.slow
@pytest.mark.parametrize("door", READERS)
async def test_one_that_reads_slowly_gets_all_of_it(server: RunningServer, door: str) -> None:
    before = num_aborted(server)
    deadline = time.monotonic() + 4 * MAX_STALL_S
    async with paused(server, door) as (pieces, texts):
        while time.monotonic() < deadline:
            for _ in range(SLOWLY[door]):
                index, text = await anext(pieces)
                texts[index] += text
            await asyncio.sleep(MAX_STALL_S / 4)
        async for index, text in pieces:
            texts[index] += text
    answer = await asyncio.to_thread(
        server.client.post, f"{server.http_url}/v1/completions", json={**BODY, "stream": False}
    )
    whole: Texts = defaultdict(str)
    whole |= {choice["index"]: choice["text"] for choice in answer.json()["choices"]}
    assert texts == whole
    assert num_aborted(server) == before


@pytest.mark.slow
def test_a_whole_answer_that_nobody_reads_is_given_up(server: RunningServer) -> None:
    body = {**BODY, "stream": False, "logprobs": 2}
    with RawClient(server, receive_buffer_bytes=16_384) as client:
        client.send(request(body))
        head = client.read_until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        time.sleep(3 * MAX_STALL_S)
        rest = len(client.read_all())
    length = int(re.search(rb"content-length: (\d+)", head).group(1))  # type: ignore[union-attr]
    assert rest < length
    answer = httpx.post(f"{server.http_url}/v1/completions", json=body, timeout=30)
    assert len(answer.content) == length or abs(len(answer.content) - length) < 100
