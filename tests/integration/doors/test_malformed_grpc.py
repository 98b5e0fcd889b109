"""The gRPC port under bytes that are no HTTP/2, frames that are cut off, and floods of headers."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import grpc
import psutil
import pytest
from support.running_server import RunningServer
from support.server_probes import check_idle, check_no_fault, complete
from support.small_checkpoint import NULL_ENVIRONMENT, write_checkpoint
from support.until import until

from mooring.units import MIB
from mooring.v1 import inference_pb2, inference_pb2_grpc

pytestmark = pytest.mark.integration

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, CONTINUATION = 0, 1, 3, 4, 6, 9
END_HEADERS = 4
FLOOD_BYTES = 256 * MIB
NUM_FLOODS = 10
MAX_KEPT_BYTES = 64 * MIB


def http2_frame(
    kind: int, payload: bytes, *, flags: int = 0, stream: int = 0, length: int | None = None
) -> bytes:
    size = len(payload) if length is None else length
    return size.to_bytes(3, "big") + bytes([kind, flags]) + struct.pack(">I", stream) + payload


START = PREFACE + http2_frame(SETTINGS, b"")
# A literal header that is not indexed, of 100 bytes; HPACK needs no table for it.
HEADER = b"\x00\x01x\x7f\x05" + b"y" * 132


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    root = tmp_path_factory.mktemp("malformed_grpc")
    flags = ["--engine", "null", "--memory-budget", "64MiB"]
    with RunningServer(
        root / "data", {"a": write_checkpoint(root / "a")}, flags, NULL_ENVIRONMENT
    ) as running:
        complete(running)
        yield running


def check_serves(server: RunningServer) -> None:
    with grpc.insecure_channel(server.grpc_target) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)  # type: ignore[no-untyped-call]
        request = inference_pb2.GenerateTextRequest(model="a", prompt="hello", max_tokens=3)
        *_, last = stub.Generate(request, timeout=20)
        assert last.usage.completion_tokens == 3
    check_idle(server)
    check_no_fault(server)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        bytes(5000),
        PREFACE[:10],
        PREFACE + b"\xff" * 1000,
        START + http2_frame(DATA, b"abc", stream=1),
        START + http2_frame(HEADERS, b"\xff" * 50, flags=END_HEADERS, stream=1),
        START + http2_frame(HEADERS, b"", stream=1, length=2**24 - 1),
        START + http2_frame(CONTINUATION, b"", stream=1),
        START + http2_frame(SETTINGS, b"\0" * 5),
        START + http2_frame(RST_STREAM, b"\0" * 4, stream=7),
        START + http2_frame(99, b"unknown"),
        START + http2_frame(HEADERS, HEADER, flags=END_HEADERS, stream=2),
    ],
)
def test_frames_that_are_broken_harm_nobody(server: RunningServer, sent: bytes) -> None:
    host, _, port = server.grpc_target.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5) as client:
        client.sendall(sent)
        check_serves(server)


@pytest.mark.parametrize(
    "piece",
    [
        http2_frame(CONTINUATION, HEADER * 100, stream=1),
        http2_frame(PING, b"12345678") * 1000,
        http2_frame(SETTINGS, b"") * 1000,
    ],
    ids=["headers", "pings", "settings"],
)
def test_floods_keep_nothing(server: RunningServer, piece: bytes) -> None:
    """Of clients that never read what they are answered."""
    process = psutil.Process(server.process.pid)
    check_serves(server)
    before_bytes = process.memory_full_info().uss

    def kept_bytes() -> int:
        now_bytes: int = process.memory_full_info().uss
        return now_bytes - before_bytes

    host, _, port = server.grpc_target.rpartition(":")
    for _ in range(NUM_FLOODS):
        with socket.create_connection((host, int(port)), timeout=2) as client:
            client.sendall(START + http2_frame(HEADERS, HEADER, stream=1))
            try:
                for _ in range(FLOOD_BYTES // len(piece)):
                    client.sendall(piece)
            except (TimeoutError, BrokenPipeError, ConnectionResetError):
                pass  # it reads no more of this, or has hung up
            check_serves(server)
            until(lambda: kept_bytes() < FLOOD_BYTES // 2, "what was read is not kept for who stays")
    until(lambda: kept_bytes() < MAX_KEPT_BYTES, "what was read is given back")


def test_metadata_that_is_too_large_is_refused(server: RunningServer) -> None:
    with grpc.insecure_channel(server.grpc_target) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)  # type: ignore[no-untyped-call]
        metadata = [(f"x-{number}", "y" * 1000) for number in range(100)]
        with pytest.raises(grpc.RpcError) as caught:
            stub.ListModels(inference_pb2.ListModelsRequest(), metadata=metadata, timeout=20)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    check_serves(server)


def test_connections_that_say_nothing_do_not_stand_in_the_way(server: RunningServer) -> None:
    host, _, port = server.grpc_target.rpartition(":")
    silent = [socket.create_connection((host, int(port)), timeout=5) for _ in range(100)]
    try:
        check_serves(server)
    finally:
        for client in silent:
            client.close()
