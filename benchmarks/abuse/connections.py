"""Attacks that hold connections of the HTTP door: unfinished bodies, silence, answers that nobody reads."""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from benchmarks.abuse.doors import HTTP_PATHS
from benchmarks.abuse.target import MODEL, Attack, Strike, Target
from benchmarks.abuse.wire import abort, connect, frame, handshake, request, status_of
from mooring.units import MIB

__all__ = ["half_bodies", "idle_connections", "unread_streams"]

_NUM_HALF_BODIES, _BODY_BYTES = 150, 4 * MIB
_NUM_IDLE = 120
_NUM_UNREAD, _RECEIVE_BYTES = 16, 4096
_LONG = {"n": 128, "max_tokens": 4000, "stream": True, "ignore_eos": True}
_NUM_LIKELIEST = 20


def half_bodies() -> dict[str, Attack]:
    """150 bodies of 4 MiB that end a byte early and are aborted, by door."""
    doors = ("completions", "chat", "tokenize", "kserve-infer", "kserve-generate", "admin")
    return {door: partial(_half_bodies, HTTP_PATHS[door]) for door in doors}


def _half_bodies(path: str, target: Target) -> Strike:
    half = request(target, path, b" " * (_BODY_BYTES - 1), (f"content-length: {_BODY_BYTES}",))

    def strike() -> Sequence[str]:
        with _connections(target, _NUM_HALF_BODIES, target.http) as opened:
            return _feed(opened, half, target.hold_s)

    return strike


def _feed(connections: Sequence[socket.socket], raw: bytes, hold_s: float) -> Sequence[str]:
    """Sends the same on all connections at once, as far as the server takes it, for so long."""
    states = dict.fromkeys(connections, "waiting")
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            connection.setblocking(False)
            selector.register(connection, selectors.EVENT_WRITE, memoryview(raw))
        until_s = time.monotonic() + hold_s
        while (left_s := until_s - time.monotonic()) > 0:
            if not selector.get_map():
                time.sleep(left_s)
                break
            for key, _ in selector.select(left_s):
                connection = next(each for each in connections if each is key.fileobj)
                try:
                    rest = key.data[connection.send(key.data) :]
                except OSError as error:
                    states[connection] = type(error).__name__
                    selector.unregister(connection)
                    continue
                if rest:
                    selector.modify(connection, selectors.EVENT_WRITE, rest)
                else:
                    states[connection] = "held"
                    selector.unregister(connection)
    return list(states.values())


@contextlib.contextmanager
def _connections(target: Target, number: int, address: tuple[str, int]) -> Iterator[list[socket.socket]]:
    """So many connections, which are aborted at the end."""
    with contextlib.ExitStack() as stack:
        opened = []
        for _ in range(number):
            opened.append(connect(target, address))
            stack.callback(abort, opened[-1])
        yield opened


def idle_connections() -> dict[str, Attack]:
    """120 connections on which nothing comes, by door; for a server that may open 60 files."""
    return {
        "http": lambda target: partial(_idle, target, target.http),
        "grpc": lambda target: partial(_idle, target, _address_of(target.grpc)),
    }


def _address_of(authority: str) -> tuple[str, int]:
    host, _, port = authority.rpartition(":")
    return host, int(port)


def _idle(target: Target, address: tuple[str, int]) -> list[str]:
    try:
        with _connections(target, _NUM_IDLE, address) as opened:
            time.sleep(target.hold_s)
            return [_state(connection) for connection in opened]
    except OSError as error:
        return [type(error).__name__]


def _state(connection: socket.socket) -> str:
    """Whether the server has let a connection go."""
    connection.setblocking(False)
    try:
        return "answered" if connection.recv(1 << 16) else "closed"
    except BlockingIOError:
        return "held"
    except OSError as error:
        return type(error).__name__


def unread_streams() -> dict[str, Attack]:
    """16 long streams of 128 choices whose reader does not read, by door."""
    completion = {"model": MODEL, "prompt": "a", "logprobs": _NUM_LIKELIEST, **_LONG}
    messages = [{"role": "user", "content": "a"}]
    chat = {"model": MODEL, "messages": messages, "logprobs": True, "top_logprobs": _NUM_LIKELIEST, **_LONG}
    parameters = {"n": 128, "logprobs": _NUM_LIKELIEST, "return_logprobs": True, "ignore_eos": True}
    triton = {"text_input": "a", "stream": True, "max_tokens": 4000, "parameters": parameters}
    posts: dict[str, Any] = {"completions": completion, "chat": chat, "kserve-stream": triton}
    return {
        **{door: partial(_unread_posts, HTTP_PATHS[door], body) for door, body in posts.items()},
        "websocket": lambda target: partial(
            _unread, target, [handshake(target), frame(json.dumps(completion).encode())]
        ),
    }


def _unread_posts(path: str, body: Any, target: Target) -> Strike:
    return partial(_unread, target, [request(target, path, json.dumps(body).encode())])


def _unread(target: Target, sent: Sequence[bytes]) -> list[str]:
    """Sends the same on each of several connections, reads where the answer begins and no more, and aborts them
    after a while."""
    answers = []
    with contextlib.ExitStack() as stack:
        for _ in range(_NUM_UNREAD):
            try:
                connection = connect(target, receive_bytes=_RECEIVE_BYTES)
                stack.callback(abort, connection)
                connection.sendall(sent[0])
                answers.append(status_of(connection.recv(16)))
                for each in sent[1:]:
                    connection.sendall(each)
            except OSError as error:
                answers.append(type(error).__name__)
        time.sleep(target.hold_s)
    return answers
