"""Messages of a WebSocket that go out in several frames."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from websockets.asyncio.client import connect

from mooring.server.door_config import HttpLimits
from mooring.server.doors import http_door
from mooring.units import MIB

LIMITS = HttpLimits(MIB, max_head_bytes=65_536, request_timeout_s=60, max_reader_stall_s=60)


async def test_a_message_that_was_begun_ends_although_its_sender_is_cancelled() -> None:
    is_cancelled = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        sending = asyncio.ensure_future(send({"type": "websocket.send", "pieces": [b"x" * 16 * MIB]}))
        await asyncio.wait(
            [sending], timeout=1.0
        )  # the client reads nothing, and the kernel keeps less than that
        assert not sending.done()
        sending.cancel()
        await asyncio.wait([sending])
        is_cancelled.set()
        await send({"type": "websocket.send", "pieces": [b"after"]})
        await receive()

    async with http_door(app, "127.0.0.1", 0, LIMITS) as url:
        host, port = url.removeprefix("http://").split(":")
        own = socket.socket()
        own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        own.setblocking(False)
        await asyncio.get_running_loop().sock_connect(own, (host, int(port)))
        async with connect(
            url.replace("http", "ws", 1),
            sock=own,
            max_size=None,
            max_queue=1,
            compression=None,
            ping_interval=None,
        ) as client:
            await asyncio.wait_for(is_cancelled.wait(), 30)
            assert len(await asyncio.wait_for(client.recv(), 30)) == 16 * MIB
            assert await asyncio.wait_for(client.recv(), 30) == "after"
