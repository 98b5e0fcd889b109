"""Clients that stop reading in the middle, at every door: they hold up nobody and keep little, and may go on
later to find all of it, or go away."""

from __future__ import annotations

import asyncio
import json
import socket
import time
import urllib.parse
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import grpc
import httpx
import psutil
import pytest
from support.running_server import RunningServer
from support.server_probes import check_idle, check_no_fault
from support.small_checkpoint import MAX_MODEL_LEN, NULL_ENVIRONMENT, write_checkpoint
from tritonclient.grpc import service_pb2
from websockets.asyncio.client import connect

from mooring.units import MIB
from mooring.v1 import inference_pb2

pytestmark = pytest.mark.integration

NUM_OTHERS = 60
NUM_CHOICES = 128
RECEIVE_BUFFER_BYTES = 16_384  # or the kernel takes all of an answer
NUM_TOKENS = MAX_MODEL_LEN - 12
MAX_GROWTH_BYTES = 96 * MIB
BODY = {"model": "a", "prompt": "hello", "max_tokens": NUM_TOKENS, "n": NUM_CHOICES, "stream": True}
Texts = dict[int, str]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    root = tmp_path_factory.mktemp("slow_readers")
    flags = ["--engine", "null", "--memory-budget", "64MiB"]
    with RunningServer(
        root / "data", {"a": write_checkpoint(root / "a")}, flags, NULL_ENVIRONMENT
    ) as running:
        yield running


@pytest.fixture(scope="module")
def whole(server: RunningServer) -> Texts:
    """What each choice says to a client that reads."""
    answer = server.client.post(f"{server.http_url}/v1/completions", json={**BODY, "stream": False})
    return {choice["index"]: choice["text"] for choice in answer.json()["choices"]}


# Each gives pieces of (choice, text) as fast as they are taken ------------------------------------------


def connection(server: RunningServer) -> socket.socket:
    """To the HTTP door, with room for little of what it sends."""
    address = urllib.parse.urlsplit(server.http_url)
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    made.connect((address.hostname, address.port))
    made.setblocking(False)
    return made


async def read_http(server: RunningServer) -> AsyncIterator[tuple[int, str]]:
    body = json.dumps(BODY).encode()
    # Not httpx, which reads ahead.
    reader, writer = await asyncio.open_connection(sock=connection(server), limit=1 << 14)
    try:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        while b"[DONE]" not in (line := await reader.readline()):
            if line.startswith(b"data: "):
                for choice in json.loads(line.removeprefix(b"data: "))["choices"]:
                    yield choice["index"], choice["text"]
    finally:
        writer.close()


async def read_socket(server: RunningServer) -> AsyncIterator[tuple[int, str]]:
    url = server.http_url.replace("http://", "ws://") + "/v1/stream"
    async with connect(
        url, sock=connection(server), max_queue=4, ping_interval=None, close_timeout=0.2
    ) as opened:
        await opened.send(json.dumps({"id": "1", "type": "completions", "body": BODY}))
        while (event := json.loads(await opened.recv()))["type"] == "chunk":
            for choice in event["data"]["choices"]:
                yield choice["index"], choice["text"]


async def read_grpc(server: RunningServer) -> AsyncIterator[tuple[int, str]]:
    request = inference_pb2.GenerateTextRequest(
        model="a", prompt="hello", max_tokens=NUM_TOKENS, n=NUM_CHOICES
    )
    async with grpc.aio.insecure_channel(server.grpc_target) as channel:
        call = channel.unary_stream(
            "/mooring.v1.Inference/Generate",
            inference_pb2.GenerateTextRequest.SerializeToString,
            inference_pb2.GenerateTextResponse.FromString,
        )(request)
        async for message in call:
            for choice in message.choices:
                yield choice.index, choice.text


async def read_kserve(server: RunningServer) -> AsyncIterator[tuple[int, str]]:
    request = service_pb2.ModelInferRequest(model_name="a")
    for name, datatype in (
        ("text_input", "BYTES"),
        ("max_tokens", "INT32"),
        ("num_return_sequences", "INT32"),
    ):
        request.inputs.add(name=name, datatype=datatype, shape=[1])
    request.inputs.add(name="stream", datatype="BOOL", shape=[1]).contents.bool_contents.append(True)
    request.inputs[0].contents.bytes_contents.append(b"hello")
    request.inputs[1].contents.int_contents.append(NUM_TOKENS)
    request.inputs[2].contents.int_contents.append(NUM_CHOICES)
    request.outputs.add(name="text_output")
    async with grpc.aio.insecure_channel(server.grpc_target) as channel:
        call = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            service_pb2.ModelInferRequest.SerializeToString,
            service_pb2.ModelStreamInferResponse.FromString,
        )(iter([request]))
        async for message in call:
            assert not message.error_message
            [output] = message.infer_response.outputs or [None]
            if output is not None:
                for index, text in enumerate(strings(message.infer_response.raw_output_contents[0])):
                    yield index, text


def strings(raw: bytes) -> Iterator[str]:
    """The elements of a BYTES tensor."""
    while raw:
        end = 4 + int.from_bytes(raw[:4], "little")
        yield raw[4:end].decode()
        raw = raw[end:]


READERS = {"http": read_http, "websocket": read_socket, "grpc": read_grpc, "kserve": read_kserve}


# The others ---------------------------------------------------------------------------------------------


async def stream_others(server: RunningServer) -> float:
    """Streams many answers side by side; how long that took."""
    limits = httpx.Limits(max_connections=NUM_OTHERS)
    body = {**BODY, "n": 1, "max_tokens": 40}

    async def one() -> None:
        async with http.stream("POST", "/v1/completions", json=body) as answer:
            lines = [line async for line in answer.aiter_lines() if line]
            assert lines[-1] == "data: [DONE]"

    async with httpx.AsyncClient(base_url=server.http_url, timeout=30, limits=limits) as http:
        await one()
        began = time.monotonic()
        await asyncio.gather(*(one() for _ in range(NUM_OTHERS)))
        return time.monotonic() - began


@asynccontextmanager
async def paused(
    server: RunningServer, door: str
) -> AsyncIterator[tuple[AsyncIterator[tuple[int, str]], Texts]]:
    """A client that has read a few pieces and stands still; what it has read."""
    texts: Texts = defaultdict(str)
    pieces = READERS[door](server)
    try:
        for _ in range(3):
            index, text = await anext(pieces)
            texts[index] += text
        yield pieces, texts
    finally:
        await pieces.aclose()  # type: ignore[attr-defined]


@pytest.mark.parametrize("door", READERS)
async def test_one_that_stands_still_holds_up_nobody_and_finds_all_of_it_later(
    server: RunningServer, whole: Texts, door: str
) -> None:
    alone_s = await stream_others(server)
    process = psutil.Process(server.process.pid)
    before_bytes = process.memory_full_info().uss
    async with paused(server, door) as (pieces, texts):
        await asyncio.sleep(0.5)  # the engine has long been done with it, or waits
        beside_s = await stream_others(server)
        assert process.memory_full_info().uss - before_bytes < MAX_GROWTH_BYTES
        async for index, text in pieces:
            texts[index] += text
    assert texts == whole
    assert beside_s < 3 * alone_s + 10
    check_idle(server)


@pytest.mark.parametrize("door", READERS)
async def test_one_that_goes_away_while_it_stands_still_leaves_nothing(
    server: RunningServer, door: str
) -> None:
    process = psutil.Process(server.process.pid)
    num_files = process.num_fds()
    for _ in range(3):
        async with paused(server, door):
            await asyncio.sleep(0.1)
    check_idle(server)
    deadline = time.monotonic() + 5
    while process.num_fds() > num_files + 2:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    check_no_fault(server)
