"""Connections of the HTTP door: their number, TLS, and what a client can make the server keep."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.certificates import Certificates, make_certificates
from support.http_door import HttpDoor, guarded_door
from support.raw_http import frame, request
from support.router_doors import (
    ScriptedStream,
    byte_level_tokenizer,
    one_token_a_step,
    write_model_folder,
)
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from mooring.config import TlsFiles
from mooring.server.bounded_reads import MAX_READ_BYTES
from mooring.server.connection_limits import ConnectionLimits
from mooring.server.http_connection import HttpConnection
from mooring.units import KIB, MIB
from router.request.request import GenerationRequest

pytestmark = pytest.mark.integration

TOKENIZER = byte_level_tokenizer()
GET = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
UPGRADE = (
    b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def answer(request: GenerationRequest) -> ScriptedStream:
    return ScriptedStream(one_token_a_step(request, TOKENIZER.encode("hello").ids))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("model"), TOKENIZER)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@contextlib.asynccontextmanager
async def door(folder: Path, **options: Any) -> AsyncIterator[HttpDoor]:
    async with guarded_door(folder, answer, **options) as running:
        yield running


class Client:
    """A connection to a door, from an address of choice."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, server: HttpDoor, address: str = "127.0.0.1") -> Client:
        host, port = server.url.rpartition("/")[2].split(":")
        return cls(*await asyncio.open_connection(host, int(port), local_addr=(address, 0)))

    async def ask(self, request: bytes = GET) -> int:
        """Status of the answer to a request; 0 if the server hung up."""
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionError):
                self.writer.write(request)
                await self.writer.drain()
            try:
                head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
            except (asyncio.IncompleteReadError, ConnectionError):
                return 0
            length = int((head.partition("content-length: ")[2] or "0").partition("\r\n")[0])
            await self.reader.readexactly(length)
            return int(head.split()[1])

    async def is_hung_up_on(self) -> bool:
        """Waits for the end of what the server sends."""
        async with asyncio.timeout(20):
            with contextlib.suppress(ConnectionError):
                await self.reader.read()
            return True

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await self.writer.wait_closed()


async def served(server: HttpDoor, address: str = "127.0.0.1") -> None:
    """Waits until a new connection is served, and closes it."""
    async with asyncio.timeout(10):
        while True:
            client = await Client.connect(server, address)
            status = await client.ask()
            await client.close()
            if status == 200:
                return
            await asyncio.sleep(0.01)


# Numbers.


async def test_one_address_cannot_have_all_connections(folder: Path) -> None:
    async with door(folder, connections=ConnectionLimits(5, 3)) as server:
        idle = [await Client.connect(server) for _ in range(3)]
        assert await idle[0].ask() == 200
        assert await (await Client.connect(server)).ask() == 429
        others = [await Client.connect(server, "127.0.0.2") for _ in range(2)]
        assert [await each.ask() for each in others] == [200, 200]
        assert await (await Client.connect(server, "127.0.0.3")).ask() == 503
        await idle[0].close()
        await served(server, "127.0.0.3")
        assert await idle[1].ask() == 200, "those that were let in are served on"


async def test_a_websocket_is_a_connection_too(folder: Path) -> None:
    async with door(folder, connections=ConnectionLimits(2, None)) as server:
        sockets = [await Client.connect(server) for _ in range(2)]
        assert [await each.ask(UPGRADE) for each in sockets] == [101, 101]
        assert await (await Client.connect(server)).ask() == 503
        await sockets[0].close()
        await served(server)


# TLS.


def trusting(certificates: Certificates, *, has_certificate: bool) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certificates.authority))
    if has_certificate:
        context.load_cert_chain(certificates.client, certificates.client_key)
    return context


async def test_tls(folder: Path, certificates: Certificates) -> None:
    files = TlsFiles(certificates.server, certificates.server_key, None)
    async with door(folder, tls=files) as server:
        assert server.url.startswith("https://127.0.0.1:")
        context = trusting(certificates, has_certificate=False)
        async with httpx.AsyncClient(verify=context, base_url=server.url) as http:
            body = {"model": "org/tiny", "prompt": "hi"}
            assert (await http.post("/v1/completions", json=body)).status_code == 200
        with pytest.raises(httpx.ConnectError):
            async with httpx.AsyncClient(base_url=server.url) as http:
                await http.get("/health/live")
        plain = await Client.connect(server)
        assert await plain.ask() == 0


async def test_mutual_tls(folder: Path, certificates: Certificates) -> None:
    files = TlsFiles(certificates.server, certificates.server_key, certificates.authority)
    async with door(folder, tls=files) as server:
        known = trusting(certificates, has_certificate=True)
        async with httpx.AsyncClient(verify=known, base_url=server.url) as http:
            assert (await http.get("/health/live")).status_code == 200
        unknown = trusting(certificates, has_certificate=False)
        with pytest.raises((httpx.ConnectError, httpx.ReadError)):
            async with httpx.AsyncClient(verify=unknown, base_url=server.url) as http:
                await http.get("/health/live")


async def test_connections_without_a_handshake_count(folder: Path, certificates: Certificates) -> None:
    files = TlsFiles(certificates.server, certificates.server_key, None)
    context = trusting(certificates, has_certificate=False)
    async with (
        door(folder, tls=files, connections=ConnectionLimits(2, None)) as server,
        httpx.AsyncClient(verify=context, base_url=server.url) as http,
    ):
        silent = [await Client.connect(server) for _ in range(2)]
        assert await (await Client.connect(server)).is_hung_up_on()
        for each in silent:
            await each.close()
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(httpx.TransportError):
                    assert (await http.get("/health/live")).status_code == 200
                    break


# Memory.


async def test_few_requests_wait_on_a_connection(folder: Path) -> None:
    async with door(folder) as server:
        client = await Client.connect(server)
        client.writer.write(GET * 2000)
        got = b""
        async with asyncio.timeout(20):
            with contextlib.suppress(ConnectionError):
                while data := await client.reader.read(1 << 16):
                    got += data
        assert 1 <= got.count(b"HTTP/1.1 200") < 20


@pytest.mark.parametrize("further", [GET, UPGRADE], ids=["request", "websocket"])
async def test_a_request_ends_with_its_client_whatever_came_after_it(
    folder: Path, further: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    received = bytearray()
    has_come = asyncio.Event()
    read = HttpConnection.data_received

    def noting(connection: HttpConnection, data: bytes | memoryview) -> None:
        received.extend(data)
        read(connection, data)
        if received.endswith(further):
            has_come.set()

    monkeypatch.setattr(HttpConnection, "data_received", noting)

    def endless(request: GenerationRequest) -> ScriptedStream:
        return ScriptedStream(one_token_a_step(request, TOKENIZER.encode("hello").ids), pause_s=3600)

    async with guarded_door(folder, endless) as server:
        client = await Client.connect(server)
        client.writer.write(request({"model": "org/tiny", "prompt": "hi"}))
        await server.source.started(1)
        client.writer.write(further)
        async with asyncio.timeout(10):
            await has_come.wait()
        await client.close()
        await server.closed()
        await server.in_flight(0)


async def test_little_is_read_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    read = HttpConnection.data_received

    def noting(connection: HttpConnection, data: bytes | memoryview) -> None:
        lengths.append(len(data))
        read(connection, data)

    monkeypatch.setattr(HttpConnection, "data_received", noting)
    body = {"model": "org/tiny", "prompt": "hi", "max_tokens": 2, "user": "x" * MIB}
    async with door(folder) as server:
        client = await Client.connect(server)
        assert await client.ask(request(body)) == 200
    assert sum(lengths) > MIB
    assert max(lengths) <= MAX_READ_BYTES


async def test_a_body_in_very_small_chunks_is_cut_off(folder: Path) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += b"Transfer-Encoding: chunked\r\n\r\n"
    body = json.dumps({"model": "org/tiny", "prompt": "hi", "max_tokens": 2, "user": "x" * 5000}).encode()
    async with door(folder) as server:
        for size, status in ((1, 400), (40, 200)):
            parts = [body[at : at + size] for at in range(0, len(body), size)]
            chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
            client = await Client.connect(server)
            assert await client.ask(head + chunks + b"0\r\n\r\n") == status


async def test_half_sent_messages_of_websockets_are_bounded_together(folder: Path) -> None:
    message = json.dumps(
        {"id": "a", "type": "completions", "body": {"model": "org/tiny", "prompt": "x" * 3 * MIB}}
    )
    whole = frame(message.encode())
    async with door(folder, max_unread_bytes=4 * MIB) as server:
        clients = [await Client.connect(server) for _ in range(3)]
        for client in clients:
            assert await client.ask(UPGRADE) == 101
        for client in clients[:2]:
            client.writer.write(whole[: 3 * MIB])
        async with asyncio.timeout(20):
            done, pending = await asyncio.wait(
                [asyncio.create_task(client.is_hung_up_on()) for client in clients[:2]],
                return_when=asyncio.FIRST_COMPLETED,
            )
        assert (len(done), len(pending)) == (1, 1), "one was too much"
        for task in pending:
            task.cancel()
        for client in clients[:2]:
            await client.close()
        clients[2].writer.write(frame(b'{"id": "b", "type": "nope"}'))
        async with asyncio.timeout(10):
            assert b"invalid_value" in await clients[2].reader.read(1 << 16)


async def test_small_pieces_of_a_message_are_kept_as_one_and_read_a_few_at_a_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    read = WebSocketsSansIOProtocol.data_received

    def noted(self: WebSocketsSansIOProtocol, data: bytes) -> None:
        sizes.append(len(data))
        read(self, data)

    monkeypatch.setattr(WebSocketsSansIOProtocol, "data_received", noted)
    text = b'{"id": "b", "type": "%s"}' % (b"n" * 10_000)
    first, *rest = [text[at : at + 1] for at in range(len(text))]
    pieces = [
        frame(first, fin=False),
        *(frame(each, opcode=0, fin=False) for each in rest),
        frame(b"", opcode=0),
    ]
    async with door(folder) as server:
        client = await Client.connect(server)
        assert await client.ask(UPGRADE) == 101
        tracemalloc.start()
        try:
            client.writer.write(b"".join(pieces[:-1]))
            async with asyncio.timeout(20):
                while sum(sizes) < sum(map(len, pieces[:-1])):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert tracemalloc.get_traced_memory()[0] < 256 * KIB  # each piece by itself: 400 KiB
        finally:
            tracemalloc.stop()
        client.writer.write(pieces[-1])
        async with asyncio.timeout(10):
            assert b"invalid_value" in await client.reader.read(1 << 16)
    assert max(sizes) <= 8 * KIB
