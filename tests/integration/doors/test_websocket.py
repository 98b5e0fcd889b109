"""The socket as clients meet it: the server's own door, a real client, several requests at a time."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from support.router_doors import (
    KEY,
    ScriptedSource,
    ScriptedStream,
    byte_level_tokenizer,
    known_tenant,
    one_token_a_step,
    served_model,
    services,
    write_model_folder,
)
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from engines.api import ChoiceTokens
from model_registry.records import TenantRecord
from model_registry.tenants import hash_key
from mooring.errors import WorkerLostError
from mooring.server.door_config import HttpLimits
from mooring.server.doors import http_door
from mooring.units import KIB
from router.doors.http.access import OperatorKeys
from router.doors.http_app import create_app
from router.doors.openai.websocket import SOCKET_PATH
from router.request.bounds import RouterConfig
from router.request.request import GenerationRequest

# One server, and one event loop, for all tests: to start one takes longer than most of them.
pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

TOKENIZER = byte_level_tokenizer()
END = TOKENIZER.token_to_id("<|im_end|>")
ANSWER = "hello there 🦀!"
ANSWER_IDS = [*TOKENIZER.encode(ANSWER, add_special_tokens=False).ids, END]
NUM_FLOOD_STEPS = 300


class FloodStream(ScriptedStream):
    """Counts the steps that were taken from it."""

    num_taken = 0

    async def __aiter__(self) -> AsyncIterator[list[ChoiceTokens]]:
        async for step in super().__aiter__():
            self.num_taken += 1
            yield step


def answer(request: GenerationRequest) -> ScriptedStream:
    """Says the answer, or plays out what the prompt asks for."""
    text = TOKENIZER.decode(list(request.prompt_ids))
    steps = one_token_a_step(request, ANSWER_IDS, stop_token_id=END)
    if "fail" in text:
        return ScriptedStream([*steps[:3], WorkerLostError("The worker died twice under it.")])
    if "hang" in text:
        return ScriptedStream([steps[0], *steps[1:]], pause_s=30)
    if "crawl" in text:
        return ScriptedStream([[ChoiceTokens(0, [ANSWER_IDS[0]])]] * 4000, pause_s=0.01)
    if "bug" in text:
        raise ZeroDivisionError("a bug")
    if "flood" in text:
        ids = [ANSWER_IDS[0]]
        return FloodStream([[ChoiceTokens(i, ids) for i in range(request.n)]] * NUM_FLOOD_STEPS)
    return ScriptedStream(steps)


@dataclass
class Server:
    url: str
    source: ScriptedSource

    def connect(self, **options: Any) -> connect:
        return connect(f"ws{self.url.removeprefix('http')}{SOCKET_PATH}", **options)

    async def opened(self, num_streams: int) -> list[ScriptedStream]:
        """Waits until there are so many streams."""
        async with asyncio.timeout(20):
            while len(self.source.streams) < num_streams:  # noqa: ASYNC110 (a list has no event)
                await asyncio.sleep(0.005)
        return self.source.streams

    async def all_closed(self, num_streams: int) -> None:
        """Waits until so many streams were opened and all of them closed."""
        async with asyncio.timeout(20):
            for stream in await self.opened(num_streams):
                await stream.closed.wait()


@contextlib.asynccontextmanager
async def running(folder: Path, **options: Any) -> AsyncIterator[Server]:
    source = ScriptedSource(answer)
    model = served_model("org/tiny", folder, max_model_len=96)
    given = services(source, [model], **options)
    limits = HttpLimits(
        given.config.max_body_bytes, max_head_bytes=64 * KIB, request_timeout_s=60, max_reader_stall_s=60
    )
    async with http_door(create_app(given, OperatorKeys("admin")), "127.0.0.1", 0, limits) as url:
        yield Server(url, source)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("model"), TOKENIZER)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_server(folder: Path) -> AsyncIterator[Server]:
    async with running(folder) as started:
        yield started


@pytest.fixture
def server(shared_server: Server) -> Server:
    shared_server.source.forget()
    return shared_server


def completion(request_id: str, prompt: str = "hi", **fields: Any) -> str:
    body = {"model": "org/tiny", "prompt": prompt, "max_tokens": 50, **fields}
    return json.dumps({"id": request_id, "type": "completions", "body": body})


def chat(request_id: str, text: str = "hi", **fields: Any) -> str:
    body = {"model": "org/tiny", "messages": [{"role": "user", "content": text}], **fields}
    return json.dumps({"id": request_id, "type": "chat.completions", "body": body})


def cancel(request_id: str) -> str:
    return json.dumps({"id": request_id, "type": "cancel"})


async def event(socket: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(20):
        got: dict[str, Any] = json.loads(await socket.recv())
    assert set(got) == {"id", "type", "data"}
    return got


async def until_ended(socket: ClientConnection, *request_ids: str) -> dict[str, list[dict[str, Any]]]:
    """The events of these requests, up to the last one of each."""
    events: dict[str, list[dict[str, Any]]] = defaultdict(list)
    running = set(request_ids)
    while running:
        got = await event(socket)
        events[got["id"]].append(got)
        if got["type"] != "chunk":
            running.discard(got["id"])
    return events


async def test_the_data_is_what_http_answers(server: Server) -> None:
    bodies = {
        "a": chat("a", stream=True, n=2, stream_options={"include_usage": True}),
        "b": completion("b", stream=True, logprobs=1),
        "c": chat("c"),
        "d": completion("d", temperature=9),
    }
    async with server.connect() as socket:
        for frame in bodies.values():
            await socket.send(frame)
        events = await until_ended(socket, *bodies)

    async with httpx.AsyncClient(base_url=f"{server.url}/v1") as http:
        for request_id, frame in bodies.items():
            sent = json.loads(frame)
            path = sent["type"].replace(".", "/")
            result = await http.post(path, json=sent["body"], headers={"x-request-id": request_id})
            got = events[request_id]
            if sent["body"].get("stream"):
                expected = [each.removeprefix("data: ") for each in result.text.split("\n\n") if each]
                assert expected.pop() == "[DONE]"
                assert got.pop() == {"id": request_id, "type": "completed", "data": None}
                assert {each["type"] for each in got} == {"chunk"}
            else:
                expected = [result.text]
                assert got[0]["type"] == ("completed" if result.is_success else "error")
            assert [without_time(each["data"]) for each in got] == [
                without_time(json.loads(each)) for each in expected
            ]
    for stream in server.source.streams:
        assert stream.closed.is_set()


def without_time(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name not in ("created", "mooring")}


async def test_metadata_stays_with_the_request(server: Server) -> None:
    async with server.connect() as socket:
        await socket.send(chat("a", metadata={"job": "nightly"}))
        await socket.send(chat("b", metadata={"job": 7}))
        events = await until_ended(socket, "a", "b")
    assert [request.metadata for request in server.source.requests] == [(("job", "nightly"),)]
    assert events["b"][-1]["data"]["error"]["param"] == "metadata.job"


async def test_requests_run_side_by_side_and_one_is_cancelled_by_its_id(server: Server) -> None:
    async with server.connect() as socket:
        await socket.send(completion("slow", "crawl", stream=True))
        assert (await event(socket))["id"] == "slow"
        await socket.send(completion("whole", "hang"))
        slow, whole = list(await server.opened(2))
        await socket.send(chat("quick", stream=True))
        quick = await until_ended(socket, "quick")
        text = "".join(
            choice["delta"].get("content", "")
            for each in quick["quick"][:-1]
            for choice in each["data"]["choices"]
        )
        assert text == ANSWER
        assert not slow.closed.is_set()

        await socket.send(cancel("whole"))
        assert (await until_ended(socket, "whole"))["whole"][-1]["type"] == "cancelled"
        assert whole.closed.is_set()  # the event says that all it held is free
        assert not slow.closed.is_set()
        await socket.send(cancel("slow"))
        assert (await until_ended(socket, "slow"))["slow"][-1]["type"] == "cancelled"
        assert slow.closed.is_set()

        await socket.send(cancel("slow"))  # has ended: nothing to say
        await socket.send(chat("slow"))  # and its id is free
        assert (await event(socket))["data"]["choices"][0]["message"]["content"] == ANSWER


async def test_closing_the_socket_frees_everything(server: Server) -> None:
    async with server.connect() as socket:
        await socket.send(completion("a", "crawl", stream=True))
        await socket.send(completion("b", "hang"))
        await socket.send(completion("c", "hang", stream=True))
        await event(socket)
    await server.all_closed(3)


async def test_a_torn_connection_frees_everything(server: Server) -> None:
    async with server.connect() as socket:
        await socket.send(completion("a", "crawl", stream=True))
        await socket.send(completion("b", "hang"))
        await event(socket)
        socket.transport.abort()
    await server.all_closed(2)


DEEP = '{"id": "x", "type": "completions", "body": ' + "[" * 100_000


@pytest.mark.parametrize(
    ("frame", "request_id", "code", "param"),
    [
        ("nonsense", None, "invalid_value", None),
        (DEEP, None, "invalid_value", None),
        ("[1]", None, "invalid_value", None),
        (b"\x00\x01", None, "invalid_value", None),
        ("{}", None, "missing_required_parameter", "id"),
        ('{"id": 7, "type": "cancel"}', None, "invalid_type", "id"),
        ('{"id": "", "type": "cancel"}', "", "invalid_value", "id"),
        ('{"id": "\\ud800", "type": "cancel", "x": 1}', None, "invalid_value", None),
        (completion("x" * 129), None, "invalid_value", "id"),
        ('{"id": "x", "type": "embeddings"}', "x", "invalid_value", "type"),
        ('{"id": "x", "type": "completions"}', "x", "invalid_value", None),
        ('{"id": "x", "type": "completions", "body": [1]}', "x", "invalid_value", None),
        ('{"id": "x", "type": "cancel", "body": {}}', "x", "unsupported_parameter", "body"),
        (completion("x", model="nope"), "x", "model_not_found", "model"),
        (completion("x", whatever=1), "x", "unsupported_parameter", "whatever"),
        (completion("x", "bug"), "x", "internal_error", None),
        (completion("busy"), None, "conflict", "id"),
        ('{"id": "busy", "type": "nope"}', None, "invalid_value", "type"),
    ],
)
async def test_a_bad_frame_harms_nobody_else(
    server: Server, frame: str | bytes, request_id: str | None, code: str, param: str | None
) -> None:
    async with server.connect() as socket:
        await socket.send(completion("busy", "hang"))
        busy = (await server.opened(1))[0]
        await socket.send(frame)
        got = await event(socket)
        assert (got["id"], got["type"]) == (request_id, "error")
        assert (got["data"]["error"]["code"], got["data"]["error"]["param"]) == (code, param)
        await socket.send(completion("good"))
        assert (await event(socket))["data"]["choices"][0]["text"] == ANSWER
        assert not busy.closed.is_set()


async def test_an_error_in_the_middle_is_the_last_event(server: Server) -> None:
    async with server.connect() as socket:
        await socket.send(completion("a", "fail", stream=True))
        *chunks, last = (await until_ended(socket, "a"))["a"]
    assert "".join(each["data"]["choices"][0]["text"] for each in chunks) == TOKENIZER.decode(ANSWER_IDS[:3])
    assert (last["type"], last["data"]["error"]["code"]) == ("error", "worker_lost")
    await server.all_closed(1)


async def test_limits(folder: Path) -> None:
    config = RouterConfig(max_socket_requests=2, max_body_bytes=16_384)
    async with running(folder, config=config) as server:
        async with server.connect() as socket:
            for request_id in "ab":
                await socket.send(completion(request_id, "hang"))
            await server.opened(2)
            await socket.send(completion("c"))
            got = await event(socket)
            assert (got["id"], got["data"]["error"]["code"]) == ("c", "rate_limit_exceeded")
            await socket.send(cancel("a"))
            assert (await event(socket))["type"] == "cancelled"
            await socket.send(completion("c"))
            assert (await event(socket))["type"] == "completed"
            await socket.send("x" * 16_385)
            with pytest.raises(ConnectionClosed) as caught:
                await event(socket)
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1009
        await server.all_closed(3)


async def test_a_frame_counts_by_its_bytes(folder: Path) -> None:
    config = RouterConfig(max_tenant_body_bytes=2000)
    async with running(folder, config=config) as server, server.connect() as socket:
        frame = json.dumps(json.loads(completion("a", "€" * 700)), ensure_ascii=False)
        assert len(frame) < 2000 < len(frame.encode())
        await socket.send(frame)
        [refused] = (await until_ended(socket, "a"))["a"]
        assert refused["data"]["error"]["code"] == "tenant_body_bytes_in_flight"


async def test_a_large_answer_is_that_of_http(server: Server) -> None:
    frame = completion("a", n=60, logprobs=1)
    async with server.connect() as socket:
        await socket.send(frame)
        [got] = (await until_ended(socket, "a"))["a"]
    async with httpx.AsyncClient(base_url=f"{server.url}/v1", headers={"x-request-id": "a"}) as http:
        result = await http.post("/completions", json=json.loads(frame)["body"])
    assert got["type"] == "completed"
    assert result.num_bytes_downloaded > 16 * KIB  # so it came in pieces
    assert without_time(got["data"]) == without_time(result.json())


async def test_keys_are_looked_at_before_the_socket_opens_and_for_each_request(folder: Path) -> None:
    def authenticate(key_hash: str) -> TenantRecord | None:
        return known_tenant("acme") if key_hash in good else None

    good = {hash_key(KEY)}
    config = RouterConfig(key_cache_s=0, unknown_key_cache_s=0)
    async with running(folder, authenticate=authenticate, allow_anonymous=False, config=config) as server:
        for headers in ({}, {"authorization": f"Bearer {KEY[:-1]}2"}):
            with pytest.raises(InvalidStatus) as caught:
                await server.connect(additional_headers=headers)
            response = caught.value.response
            assert response.status_code == 401
            assert json.loads(response.body or b"")["error"]["code"] == "invalid_api_key"
            assert len(response.headers["x-request-id"]) == 32
        async with server.connect(additional_headers={"authorization": f"Bearer {KEY}"}) as socket:
            await socket.send(completion("a"))
            assert (await event(socket))["type"] == "completed"
            assert server.source.requests[0].tenant == "acme"
            good.clear()
            await socket.send(completion("b"))
            assert (await event(socket))["data"]["error"]["code"] == "invalid_api_key"


async def test_pages_of_other_sites_may_not_connect(server: Server) -> None:
    with pytest.raises(InvalidStatus) as caught:
        await server.connect(origin="https://elsewhere.example")
    assert caught.value.response.status_code == 403
    for options in ({"origin": server.url}, {"origin": "null", "additional_headers": {"x-api-key": "any"}}):
        async with server.connect(**options) as socket:
            await socket.send(completion("a"))
            assert (await event(socket))["type"] == "completed"


async def test_a_slow_reader_pauses_its_own_generation_only(server: Server) -> None:
    async with server.connect() as slow, server.connect() as quick:
        await slow.send(completion("flood", "flood", stream=True, n=128))
        stream = await paused(server)
        await quick.send(completion("a"))
        assert (await event(quick))["type"] == "completed"
        num_paused = stream.num_taken
        num_chunks = 0
        while (await event(slow))["type"] == "chunk":
            num_chunks += 1
    assert 0 < num_paused < NUM_FLOOD_STEPS
    assert stream.num_taken == NUM_FLOOD_STEPS
    assert num_chunks == 128 * NUM_FLOOD_STEPS


async def paused(server: Server) -> FloodStream:
    """Waits until the flood has stood still for a while."""
    async with asyncio.timeout(10):
        stream = (await server.opened(1))[0]
        assert isinstance(stream, FloodStream)
        before = -1
        while stream.num_taken != before:
            before = stream.num_taken
            await asyncio.sleep(0.3)
    return stream
