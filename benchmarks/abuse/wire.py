"""The attacker's requests: bytes over sockets and gRPC calls, without a client library's own checks."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from benchmarks.abuse.target import ATTACKER_ADDRESS, Strike, Target

__all__ = [
    "CHANNEL_OPTIONS",
    "abort",
    "call",
    "connect",
    "frame",
    "handshake",
    "metadata",
    "post",
    "request",
    "send_all",
    "send_at_once",
    "send_frames",
    "status_of",
]

# A connection of its own for each channel, and no check of ours on what the server sends.
CHANNEL_OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1))
_TIMEOUT_S = 60.0
_RESET = struct.pack("ii", 1, 0)  # linger for 0 s: closing resets the connection


def request(
    target: Target, path: str, body: bytes = b"", headers: Iterable[str] = (), method: str = "POST"
) -> bytes:
    """A whole HTTP request, after which the server hangs up.

    Args:
        headers: further ones; a length or a key among them stands in place of the request's own.
    """
    own = {"host": f"localhost:{target.http[1]}", "connection": "close", "content-length": str(len(body))}
    if method == "POST":
        own["content-type"] = "application/json"
    if target.key is not None:
        own["authorization"] = f"Bearer {target.key}"
    given = dict(header.split(": ", 1) for header in headers)
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in (own | given).items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def post(target: Target, path: str, body: bytes) -> bytes:
    """A whole POST of this JSON."""
    return request(target, path, body)


def connect(
    target: Target, address: tuple[str, int] | None = None, receive_bytes: int | None = None
) -> socket.socket:
    """A connection to the HTTP door, or to another address, from the attacker's own.

    Args:
        receive_bytes: how much the system may keep for who does not read; None leaves it to the system.
    """
    connection = socket.socket()
    if receive_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.settimeout(_TIMEOUT_S)
    try:
        connection.bind((ATTACKER_ADDRESS, 0))
        connection.connect(address or target.http)
    except OSError:
        connection.close()
        raise
    return connection


def abort(connection: socket.socket) -> None:
    """Closes a connection so that the other side is told that it was reset."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    connection.close()


def send_all(target: Target, requests: Iterable[bytes]) -> list[str]:
    """Sends requests one after the other, each on a connection of its own; their statuses."""
    return [_exchange(target, each) for each in requests]


def send_at_once(
    target: Target, make: Callable[[int], bytes], number: int, num_connections: int
) -> list[str]:
    """Sends requests, made by their number as they are needed, on so many connections at a time; their
    statuses."""
    with ThreadPoolExecutor(num_connections) as pool:
        return list(pool.map(lambda each: _exchange(target, make(each)), range(number)))


def _exchange(target: Target, raw: bytes) -> str:
    """The status of the answer, which is read to its end."""
    head = b""
    try:
        with connect(target) as connection:
            with contextlib.suppress(ConnectionError):  # refused before the end; the answer says how
                connection.sendall(raw)
            head = connection.recv(1 << 16)
            while connection.recv(1 << 20):
                pass
    except OSError as error:
        return status_of(head) if head else type(error).__name__
    return status_of(head)


def status_of(head: bytes) -> str:
    """The status in the beginning of an answer."""
    return head[9:12].decode("ascii", "replace") if head.startswith(b"HTTP/1.") else "closed"


# WebSocket ------------------------------------------------------------------------------------------


def handshake(target: Target, headers: Iterable[str] = ()) -> bytes:
    """The request that opens a WebSocket."""
    own = (
        "connection: upgrade",
        "upgrade: websocket",
        "sec-websocket-version: 13",
        "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
    )
    return request(target, "/v1/stream", headers=(*own, *headers), method="GET")


def frame(body: bytes, kind: str = "completions", frame_id: str = "1") -> bytes:
    """A text frame that begins a request of this JSON."""
    data = b'{"id": "%s", "type": "%s", "body": %s}' % (frame_id.encode(), kind.encode(), body)
    mask = os.urandom(4)
    repeated = (mask * (len(data) // 4 + 1))[: len(data)]
    mixed = int.from_bytes(data, "big") ^ int.from_bytes(repeated, "big")
    return b"\x81\xff" + len(data).to_bytes(8, "big") + mask + mixed.to_bytes(len(data), "big")


def send_frames(target: Target, frames: Iterable[bytes]) -> list[str]:
    """Opens a WebSocket, sends all frames and reads until each was answered; the types of the answers, or the
    handshake's status."""
    answers: list[str] = []
    num_frames = 0
    try:
        with connect(target) as connection:
            connection.sendall(handshake(target))
            head = b""
            while b"\r\n\r\n" not in head and (got := connection.recv(1 << 16)):
                head += got
            if status_of(head) != "101":
                return [status_of(head)]
            for each in frames:
                connection.sendall(each)
                num_frames += 1
            buffered = head.partition(b"\r\n\r\n")[2]
            while len(answers) < num_frames and (got := connection.recv(1 << 20)):
                buffered += got
                while (end := _frame_end(buffered)) and len(buffered) >= end:
                    answers += _ends(buffered[:end])
                    buffered = buffered[end:]
    except OSError as error:
        answers.append(type(error).__name__)
    return answers or ["closed"]


def _frame_end(data: bytes) -> int:
    """The end of the first frame; 0 if its head has not come yet."""
    if len(data) < 2:
        return 0
    start = {126: 4, 127: 10}.get(data[1], 2)
    if start == 2:
        return 2 + data[1]
    return start + int.from_bytes(data[2:start], "big") if len(data) >= start else 0


def _ends(event: bytes) -> list[str]:
    """The type of an event if it is its request's last; nothing for a ping."""
    if event[0] & 0x0F != 1:
        return ["closed"] if event[0] & 0x0F == 8 else []
    found = json.loads(event[event.index(b"{") :])["type"]
    return [found] if found != "chunk" else []


# gRPC -----------------------------------------------------------------------------------------------


def metadata(target: Target) -> tuple[tuple[str, str], ...]:
    """The key, if there is one."""
    return (("authorization", f"Bearer {target.key}"),) if target.key is not None else ()


def call(target: Target, path: str, messages: Iterable[bytes], *, compressed: bool = False) -> Strike:
    """A strike that sends each message as a call of its own, and reads all that is answered."""
    sent = list(messages)
    compression = grpc.Compression.Gzip if compressed else None

    def strike() -> list[str]:
        with grpc.insecure_channel(target.grpc, CHANNEL_OPTIONS) as channel:
            method = channel.stream_stream(path, bytes, bytes)
            return [_outcome(method, each) for each in sent]

    def _outcome(method: Any, message: bytes) -> str:
        try:
            for _ in method(iter((message,)), _TIMEOUT_S, metadata(target), compression=compression):
                pass
        except grpc.RpcError as error:
            return str(error.code().name)
        return "OK"

    return strike
