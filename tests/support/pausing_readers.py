"""Clients that read an answer of many choices piece by piece, at every door of a server, as fast as they want."""

from __future__ import annotations

import asyncio
import json
import socket
import urllib.parse
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import grpc
from tritonclient.grpc import service_pb2
from websockets.asyncio.client import connect

from mooring.v1 import inference_pb2
from support.running_server import RunningServer
from support.small_checkpoint import MAX_MODEL_LEN

__all__ = ["BODY", "READERS", "Texts", "paused"]

NUM_CHOICES = 128
RECEIVE_BUFFER_BYTES = 16_384  # or the kernel takes all of an answer
NUM_TOKENS = MAX_MODEL_LEN - 12
BODY = {"model": "a", "prompt": "hello", "max_tokens": NUM_TOKENS, "n": NUM_CHOICES, "stream": True}
SMALL_WINDOW = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", RECEIVE_BUFFER_BYTES))
Texts = dict[int, str]

# Each gives pieces of (choice, text) as fast as they are taken.


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
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        while b"[DONE]" not in (line := await reader.readline()):
            if not line:
                raise EOFError("the server ended the connection in the middle of its answer")
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
    async with grpc.aio.insecure_channel(server.grpc_target, options=SMALL_WINDOW) as channel:
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
    async with grpc.aio.insecure_channel(server.grpc_target, options=SMALL_WINDOW) as channel:
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
