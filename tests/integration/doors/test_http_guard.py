"""The guard of the HTTP door: names, pages of other sites, keys before bodies, bytes in flight."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.http_door import ADMIN_KEY, HttpDoor, guarded_door
from support.router_doors import (
    KEY,
    ScriptedStream,
    authenticate,
    byte_level_tokenizer,
    one_token_a_step,
    write_model_folder,
)
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from mooring.units import MIB
from router.doors.http.access import OperatorKeys
from router.doors.http.json_body import MAX_CONTAINERS
from router.request.bounds import RouterConfig
from router.request.exposure import Exposure
from router.request.request import GenerationRequest

pytestmark = pytest.mark.integration

TOKENIZER = byte_level_tokenizer()
BODY = {"model": "org/tiny", "prompt": "hi", "max_tokens": 2}
PUBLIC = Exposure(allow_anonymous=False, is_public=True, checks_hosts=False)


def answer(request: GenerationRequest) -> ScriptedStream:
    return ScriptedStream(one_token_a_step(request, TOKENIZER.encode("hello").ids))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("model"), TOKENIZER)


@contextlib.asynccontextmanager
async def door(folder: Path, **options: Any) -> AsyncIterator[HttpDoor]:
    async with guarded_door(folder, answer, authenticate=authenticate, **options) as running:
        yield running


@contextlib.asynccontextmanager
async def closed_door(folder: Path, **options: Any) -> AsyncIterator[HttpDoor]:
    """A door that wants keys."""
    async with door(folder, allow_anonymous=False, exposure=PUBLIC, **options) as running:
        yield running


async def complete(
    url: str, headers: dict[str, str] | None = None, content: bytes | None = None
) -> httpx.Response:
    given = {"content-type": "application/json", **(headers or {})}
    async with httpx.AsyncClient() as http:
        return await http.post(
            f"{url}/v1/completions", content=content or json.dumps(BODY).encode(), headers=given
        )


async def socket_status(url: str, host: str, **headers: str) -> int:
    """The status of a handshake for a WebSocket; 101 if it opens."""
    port = url.rpartition(":")[2]
    try:
        async with connect(
            f"ws://{host}/v1/stream", host="127.0.0.1", port=int(port), additional_headers=headers
        ):
            return 101
    except InvalidStatus as refusal:
        return refusal.response.status_code


# Names.


OURS = ("localhost", "LOCALHOST.", "127.0.0.1", "127.1.2.3", "[::1]", "llm.example")
OTHERS = ("evil.example", "localhost.evil.example", "0.0.0.0", "10.0.0.1", "127.0.0.1.nip.example", "")


@pytest.mark.parametrize("host", [*OURS, *OTHERS])
@pytest.mark.parametrize("port", ["", ":8000"])
async def test_a_door_on_loopback_serves_its_own_names_only(folder: Path, host: str, port: str) -> None:
    is_served = host in OURS
    exposure = Exposure(allowed_hosts=frozenset({"llm.example"}))
    async with door(folder, exposure=exposure) as server, httpx.AsyncClient(base_url=server.url) as http:
        headers = {"host": f"{host}{port}"}
        for path in ("/health/live", "/v1/models", "/v2", "/nothing"):
            result = await http.get(path, headers=headers)
            assert (result.status_code == 421) is not is_served, path
        assert (await complete(server.url, headers)).status_code == (200 if is_served else 421)
        if host:
            status = await socket_status(server.url, f"{host}{port}")
            assert status == (101 if is_served else 421)
    assert len(server.source.requests) == is_served


async def test_a_public_door_serves_every_name_unless_it_is_told_its_own(folder: Path) -> None:
    key = {"host": "any.example", "x-api-key": KEY}
    async with closed_door(folder) as server:
        assert (await complete(server.url, key)).status_code == 200
    named = Exposure(False, is_public=True, checks_hosts=True, allowed_hosts=frozenset({"llm.example"}))
    async with door(folder, allow_anonymous=False, exposure=named) as server:
        assert (await complete(server.url, key)).status_code == 421
        assert (await complete(server.url, {**key, "host": "llm.example:443"})).status_code == 200
        async with httpx.AsyncClient(base_url=server.url, headers={"host": "10.1.2.3:8000"}) as probe:
            for path in ("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"):
                assert (await probe.get(path)).status_code == 200, path


# Pages of other sites.


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:1"},
        {"origin": "http://["},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "http://evil.example", "host": "evil.example"},
    ],
)
async def test_pages_of_other_sites_need_a_key(folder: Path, headers: dict[str, str]) -> None:
    unnamed = Exposure(checks_hosts=False)
    async with door(folder, exposure=unnamed) as server, httpx.AsyncClient(base_url=server.url) as http:
        for path in ("/health/live", "/v1/models", "/v2", "/admin/v1/status", "/metrics", "/nothing"):
            assert (await http.get(path, headers=headers)).status_code == 403, path
        assert (await complete(server.url, headers)).status_code == 403
        host = headers.get("host", server.url.removeprefix("http://"))
        origin = {name: value for name, value in headers.items() if name != "host"}
        assert await socket_status(server.url, host, **origin) == 403
        assert not server.source.requests
        assert (await complete(server.url, {**headers, "x-api-key": "any"})).status_code == 200
        assert await socket_status(server.url, host, **origin, authorization="Bearer any") == 101


async def test_who_follows_a_link_of_another_site_sees_a_page_that_needs_no_key(folder: Path) -> None:
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    async with door(folder) as server, httpx.AsyncClient(base_url=server.url) as http:
        assert (await http.get("/openapi.json", headers=link)).status_code == 200
        assert (await http.head("/openapi.json", headers=link)).status_code == 200
        assert (await http.post("/openapi.json", headers=link)).status_code == 403
        for other in (
            {"sec-fetch-dest": "iframe"},
            {"sec-fetch-dest": "object"},
            {"sec-fetch-mode": "no-cors"},
        ):
            assert (await http.get("/openapi.json", headers=link | other)).status_code == 403, other
        for path in ("/v1/models", "/v2", "/admin/v1/status", "/metrics"):
            assert (await http.get(path, headers=link)).status_code == 403, path


async def test_our_own_pages_need_none(folder: Path) -> None:
    async with door(folder) as server:
        own = {"origin": server.url, "sec-fetch-site": "same-origin"}
        assert (await complete(server.url, own)).status_code == 200
        assert (await complete(server.url, {"sec-fetch-site": "none"})).status_code == 200


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "Text/Plain; charset=utf-8",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "text/plain;application/json",
    ],
)
async def test_bodies_that_browsers_send_unasked_are_not_read(folder: Path, content_type: str) -> None:
    async with door(folder) as server, httpx.AsyncClient(base_url=server.url) as http:
        for path in ("/v1/completions", "/tokenize", "/v2/models/org/tiny/infer", "/admin/v1/models"):
            for key in ({}, {"x-api-key": ADMIN_KEY}):
                headers = {"content-type": content_type, **key}
                result = await http.post(path, content=json.dumps(BODY), headers=headers)
                assert result.status_code == 415


# Keys.


class HalfSent:
    """A request whose head has been sent, and the beginning of its body."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def begin(cls, url: str, path: str, num_bytes: int, sent: bytes = b"", *headers: str) -> HalfSent:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
        length = f"Content-Length: {num_bytes}" if num_bytes else "Transfer-Encoding: chunked"
        writer.write("\r\n".join([*lines, length, *headers, "", ""]).encode() + sent)
        await writer.drain()
        return cls(reader, writer)

    async def answer(self) -> tuple[int, dict[str, Any]]:
        """Status and JSON of the answer, which comes although the body does not."""
        async with asyncio.timeout(10):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
            return int(head.split()[1]), json.loads(await self._reader.readexactly(length))

    async def hang_up(self) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


@pytest.mark.parametrize(
    ("path", "key"),
    [(path, key) for path in ("/v1/completions", "/v1/nothing", "/tokenize") for key in ("", KEY[:-1] + "2")]
    + [("/admin/v1/models", KEY), ("/v2/models/org/tiny/infer", "")]
    + [("/v2/repository/models/org/tiny/load", KEY)],
)
async def test_a_key_is_refused_before_the_body_comes(folder: Path, path: str, key: str) -> None:
    async with closed_door(folder) as server:
        request = await HalfSent.begin(server.url, path, 4 * MIB, b"{", f"x-api-key: {key}")
        status, body = await request.answer()
        await request.hang_up()
    assert status == 401
    assert isinstance(body["error"], str if path.startswith("/v2") else dict)


@pytest.mark.parametrize(
    ("path", "key", "status"),
    [("/nothing", "", 404), ("/v1/completions", KEY, 413), ("/admin/v1/models", ADMIN_KEY, 413)],
)
async def test_what_needs_no_body_is_answered_before_it_comes(
    folder: Path, path: str, key: str, status: int
) -> None:
    num_bytes = 2 * MIB if path != "/v1/completions" else 5 * MIB
    async with closed_door(folder) as server:
        request = await HalfSent.begin(server.url, path, num_bytes, b"{", f"x-api-key: {key}")
        assert (await request.answer())[0] == status
        await request.hang_up()


async def test_metrics_need_a_key_where_others_could_read_them(folder: Path) -> None:
    keys = OperatorKeys(ADMIN_KEY, "m1")
    async with closed_door(folder, keys=keys) as server, httpx.AsyncClient(base_url=server.url) as http:
        for key, status in (("", 401), (KEY, 401), ("m1", 200), (ADMIN_KEY, 200)):
            result = await http.get("/metrics", headers={"x-api-key": key})
            assert result.status_code == status
        assert (await http.get("/v1/models", headers={"x-api-key": "m1"})).status_code == 401
        assert (await http.get("/openapi.json")).status_code == 404
    async with closed_door(folder) as server, httpx.AsyncClient(base_url=server.url) as http:
        assert (await http.get("/metrics", headers={"x-api-key": "m1"})).status_code == 401
    async with door(folder) as server, httpx.AsyncClient(base_url=server.url) as http:
        assert (await http.get("/metrics")).status_code == 200


# Bytes in flight.


async def test_bodies_in_flight_are_bounded_and_free_when_their_clients_go(folder: Path) -> None:
    config = RouterConfig(max_tenant_body_bytes=2 * MIB)
    async with closed_door(folder, config=config) as server:
        key = f"x-api-key: {KEY}"
        halves = [await HalfSent.begin(server.url, "/v1/completions", MIB, b"x" * 1000, key)]
        chunk = b"100000\r\n" + b"x" * MIB + b"\r\n"
        halves.append(await HalfSent.begin(server.url, "/v1/completions", 0, chunk, key))
        await server.in_flight(2 * MIB)
        for path in ("/v1/completions", "/v2/models/org/tiny/infer"):
            more = await HalfSent.begin(server.url, path, MIB, b"", key)
            status, body = await more.answer()
            assert status == 429
            assert "max_tenant_body_bytes" in json.dumps(body)
            await more.hang_up()
        assert (await complete(server.url, {"x-api-key": KEY})).status_code == 429
        for each in halves:
            await each.hang_up()
        await server.in_flight(0)
        assert (await complete(server.url, {"x-api-key": KEY})).status_code == 200
        await server.in_flight(0)


async def test_a_body_is_in_flight_until_its_large_answer_is_read(folder: Path) -> None:
    """Nobody reads the tokens of two million characters, more than the system's own buffers take."""
    body = json.dumps({"model": "org/tiny", "prompt": "ab" * MIB, "return_token_strs": True}).encode()
    async with door(folder, config=RouterConfig(max_tenant_body_bytes=3 * MIB)) as server:
        host, port = server.url.rpartition("/")[2].split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1000)
        head = f"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        async with asyncio.timeout(60):
            assert b" 200 " in await reader.readline()
        await asyncio.sleep(0.2)
        assert server.services.in_flight.body_bytes == len(body)
        writer.transport.abort()
        await server.in_flight(0)


@pytest.mark.parametrize("key", ["", KEY])
async def test_nothing_of_half_sent_bodies_is_kept(folder: Path, key: str) -> None:
    """Neither without a key, while they last, nor with one, once their clients are gone, though nothing is collected
    as garbage."""
    num_bodies, sent = 150, b"x" * MIB
    config = RouterConfig(max_tenant_body_bytes=1024 * MIB, max_total_body_bytes=1024 * MIB)
    async with closed_door(folder, config=config) as server:
        assert (await complete(server.url, {"x-api-key": KEY})).status_code == 200
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            halves = [
                await HalfSent.begin(server.url, "/v1/completions", 4 * MIB, sent, f"x-api-key: {key}")
                for _ in range(num_bodies)
            ]
            await server.in_flight(num_bodies * 4 * MIB if key else 0)
            if key:
                async with asyncio.timeout(20):
                    while tracemalloc.get_traced_memory()[0] < num_bodies * MIB:  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
            else:
                assert [(await each.answer())[0] for each in halves] == [401] * num_bodies
                assert tracemalloc.get_traced_memory()[0] < 32 * MIB  # the clients' own buffers included
            for each in halves:
                await each.hang_up()
            await server.in_flight(0)
            await asyncio.sleep(0.2)
            assert tracemalloc.get_traced_memory()[0] < 16 * MIB
        finally:
            tracemalloc.stop()
            gc.enable()


async def test_what_a_refusal_quotes_is_cut(folder: Path) -> None:
    """Refusals are sent at once, whether or not anybody reads."""
    long = "é" * 200_000
    async with door(folder) as server, httpx.AsyncClient(base_url=server.url) as http:
        for path, fields in (
            ("/v1/completions", {"model": long, "prompt": "hi"}),
            ("/v1/completions", {"model": "org/tiny", "prompt": "hi", long: 1}),
            ("/v1/chat/completions", {"model": "org/tiny", "messages": [{"role": "user", long: "hi"}]}),
            ("/v2/models/org/tiny/generate", {"text_input": "hi", long: 1}),
        ):
            result = await http.post(path, json=fields)
            assert 400 <= result.status_code < 500, path
            assert "ééé" in result.text
            assert len(result.content) < 10_000, path


# Work.


async def test_a_body_of_very_many_things_is_refused(folder: Path) -> None:
    many = b'{"prompt":[' + b"[]," * MAX_CONTAINERS + b"[]]}"
    async with door(folder) as server, httpx.AsyncClient(base_url=server.url) as http:
        for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
            result = await http.post(path, content=many, headers={"content-type": "application/json"})
            assert (result.status_code, "arrays and objects" in result.text) == (400, True), path
