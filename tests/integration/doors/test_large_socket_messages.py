"""Messages of a WebSocket that are large: others get their turn while one is sent, and none begins within it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send
from websockets.asyncio.client import connect

from mooring.server.door_config import HttpLimits
from mooring.server.doors import http_door
from mooring.units import KIB, MIB

pytestmark = pytest.mark.integration

LARGE = ["é1234567".encode() * MIB, b"x" * (MIB + 1), b"end"]
SMALL = "a small one"


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Sends a large message, and small ones at the same time."""
    await receive()
    await send({"type": "websocket.accept"})
    large = asyncio.create_task(send({"type": "websocket.send", "pieces": LARGE}))
    for _ in range(50):
        await send({"type": "websocket.send", "pieces": [SMALL[:3].encode(), SMALL[3:].encode()]})
    await large
    await receive()


async def test_a_large_message_comes_in_frames_and_whole() -> None:
    limits = HttpLimits(MIB, max_head_bytes=64 * KIB, request_timeout_s=60, max_reader_stall_s=60)
    async with http_door(app, "127.0.0.1", 0, limits) as url:
        options: dict[str, Any] = {"max_size": None, "compression": None}
        async with asyncio.timeout(30), connect(url.replace("http", "ws"), **options) as socket:
            received = [[frame async for frame in socket.recv_streaming(decode=False)] for _ in range(51)]
    messages = [b"".join(frames) for frames in received]
    assert messages.count(SMALL.encode()) == 50
    [place] = [place for place, message in enumerate(messages) if len(message) > MIB]
    assert messages[place] == b"".join(LARGE)
    assert max(map(len, received[place])) <= 256 * KIB
