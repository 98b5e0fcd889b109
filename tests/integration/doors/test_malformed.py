"""1,000 broken requests at every door of a server that serves good ones meanwhile: nothing of ours breaks, nothing
is kept, and nobody's answer changes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import psutil
import pytest
from support.malformed_requests import (
    GrpcRequest,
    HttpRequest,
    RawRequest,
    Request,
    SocketFrame,
    malformed_requests,
)
from support.running_server import RunningServer
from support.server_probes import check_idle, check_no_fault, family
from support.tiny_models import make_tiny_model
from support.until import until
from tritonclient.grpc import service_pb2
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from mooring.units import MIB
from mooring.v1 import inference_pb2

pytestmark = pytest.mark.integration

NUM_REQUESTS = 1000
NUM_AT_A_TIME = 8
SEED = 4
LIMIT_S = 20
MAX_GROWTH_BYTES = 48 * MIB
# Statuses of 500 and above, and of gRPC's kin, that are right where a request asks for what is not there.
RIGHT: frozenset[str] = frozenset()
OURS_TO_MEND = {"UNKNOWN", "INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "DATA_LOSS"}
PROMPTS = [f"The quick brown fox {number} jumps" for number in range(6)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    root = tmp_path_factory.mktemp("malformed")
    models = {"good": make_tiny_model(root / "good"), "victim": make_tiny_model(root / "victim", 1)}
    flags = ["--memory-budget", "96MiB", "--dtype", "float32"]
    with RunningServer(root / "data", models, flags, {"MOORING_TORCH__NUM_THREADS": "1"}) as running:
        yield running


class Sender:
    """Sends broken requests and notes how each was answered."""

    def __init__(self, server: RunningServer, http: httpx.AsyncClient, channel: grpc.aio.Channel) -> None:
        self._server = server
        self._http = http
        self._channel = channel
        self.answers: Counter[tuple[str, str]] = Counter()
        self.faults: list[str] = []

    async def send(self, request: Request) -> None:
        async with asyncio.timeout(LIMIT_S):
            if isinstance(request, HttpRequest):
                status = await self._send_http(request)
                is_fault = status.startswith("5")
            elif isinstance(request, RawRequest):
                status = await self._send_raw(request)
                is_fault = status.startswith("5")
            elif isinstance(request, SocketFrame):
                status = await self._send_frame(request)
                is_fault = status in ("internal_error", "1011")
            else:
                status = await self._send_grpc(request)
                is_fault = status in OURS_TO_MEND
        self.answers[request.door, status] += 1
        if is_fault and status not in RIGHT:
            self.faults.append(f"{status} for {request}"[:1000])

    async def _send_http(self, request: HttpRequest) -> str:
        key = self._server.admin_key if request.door == "admin" else "none"
        headers = {"authorization": f"Bearer {key}", **request.headers}
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        answer = await self._http.request(request.method, request.path, content=request.body, headers=raw)
        if answer.status_code >= 400:
            assert answer.json()["error"], answer.text
        return str(answer.status_code)

    async def _send_raw(self, request: RawRequest) -> str:
        address = urllib.parse.urlsplit(self._server.http_url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        try:
            writer.write(request.data)
            async with asyncio.timeout(0.3):
                return (await reader.readline())[9:12].decode() or "cut"
        except TimeoutError:
            return "waits for more"
        finally:
            writer.close()

    async def _send_frame(self, request: SocketFrame) -> str:
        host = urllib.parse.urlsplit(self._server.http_url).netloc
        async with connect(f"ws://{host}/v1/stream") as socket:
            await socket.send(request.data)
            try:
                async with asyncio.timeout(1):
                    while (got := json.loads(await socket.recv()))["type"] == "chunk":
                        pass
            except ConnectionClosed as closed:
                return str(closed.rcvd.code if closed.rcvd else "cut")
            except TimeoutError:
                return "nothing to say"  # a cancel of nothing
            return got["data"]["error"]["code"] if got["type"] == "error" else str(got["type"])

    async def _send_grpc(self, request: GrpcRequest) -> str:
        kind = ("stream_" if request.is_stream else "unary_") + (
            "stream" if request.answers_stream else "unary"
        )
        call = getattr(self._channel, kind)(request.call)
        data: Any = iter([request.data]) if request.is_stream else request.data
        try:
            answer = call(data, timeout=LIMIT_S)
            if not request.answers_stream:
                await answer
                return "OK"
            async for message in answer:
                if request.is_stream:
                    error = service_pb2.ModelStreamInferResponse.FromString(message).error_message
                    assert "error of the server's own" not in error, request
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "OK"


class GoodClient:
    """Asks the same good requests at three doors again and again."""

    def __init__(self, http: httpx.AsyncClient, channel: grpc.aio.Channel) -> None:
        self._http = http
        self._channel = channel
        self.num_answers = 0

    async def ask(self, prompt: str, max_tokens: int = 12) -> tuple[str, str, str]:
        body = {"model": "good", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
        whole = await self._http.post("/v1/completions", json=body)
        assert whole.status_code == 200, whole.text
        streamed = ""
        async with self._http.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    streamed += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
        request = inference_pb2.GenerateTextRequest(
            model="good", prompt=prompt, max_tokens=max_tokens, temperature=0
        )
        called = ""
        call = self._channel.unary_stream(
            "/mooring.v1.Inference/Generate",
            inference_pb2.GenerateTextRequest.SerializeToString,
            inference_pb2.GenerateTextResponse.FromString,
        )
        async for step in call(request, timeout=LIMIT_S):
            called += "".join(choice.text for choice in step.choices)
        self.num_answers += 3
        return whole.json()["choices"][0]["text"], streamed, called


def held(server: RunningServer) -> tuple[int, int]:
    """Descriptors and resident bytes of the server and its workers."""
    processes = family(server)
    return sum(each.num_fds() for each in processes), sum(memory(each) for each in processes)


def memory(process: psutil.Process) -> int:
    found: int = process.memory_full_info().uss
    return found


async def storm(server: RunningServer, num: int, seed: int) -> tuple[Sender, int]:
    """Broken requests several at a time, good ones beside them."""
    limits = httpx.Limits(max_keepalive_connections=0)
    async with (
        httpx.AsyncClient(base_url=server.http_url, timeout=LIMIT_S, limits=limits) as http,
        grpc.aio.insecure_channel(server.grpc_target) as channel,
    ):
        good = GoodClient(http, channel)
        alone = {prompt: await good.ask(prompt) for prompt in PROMPTS}
        good.num_answers = 0
        assert all(len(set(texts)) == 1 and texts[0] for texts in alone.values())
        sender = Sender(server, http, channel)
        waiting = iter(list(malformed_requests("good", "victim", num, seed)))

        async def break_things() -> None:
            for request in waiting:
                await sender.send(request)

        async def ask_well() -> None:
            while not done.is_set():
                for prompt in PROMPTS:
                    assert await good.ask(prompt) == alone[prompt]

        done = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(ask_well())
            async with asyncio.TaskGroup() as broken:
                for _ in range(NUM_AT_A_TIME):
                    broken.create_task(break_things())
            done.set()
            await asking
        return sender, good.num_answers


@pytest.mark.slow
async def test_a_thousand_broken_requests_harm_nobody(server: RunningServer) -> None:
    await storm(server, 150, SEED + 1)  # warm: every path has been taken, every pool filled
    check_idle(server)
    before = server.status()
    num_files, num_bytes = held(server)
    pids = server.worker_pids()

    sender, num_good = await storm(server, NUM_REQUESTS, SEED)

    for (door, status), num in sorted(sender.answers.items()):
        print(f"{door:20} {status:24} {num:4}")
    print(f"good answers beside them: {num_good}")
    assert not sender.faults, sender.faults[:5]
    assert sum(sender.answers.values()) == NUM_REQUESTS
    assert num_good >= len(PROMPTS) * 3
    check_idle(server)
    assert server.worker_pids() == pids, "the worker is still the same process"
    check_no_fault(server)
    until(lambda: held(server)[0] <= num_files + 2, "descriptors are closed")
    until(lambda: held(server)[1] <= num_bytes + MAX_GROWTH_BYTES, "memory is given back")
    assert weights_of(server.status()) == weights_of(before)


def weights_of(status: dict[str, Any]) -> dict[str, int]:
    """What the ledger says that the models' weights hold."""
    return {
        each["name"]: sum(replica["lease_bytes"] for replica in each["replicas"])
        for each in status["deployments"]
    }


@pytest.mark.slow
async def test_clients_that_vanish_leave_no_blocks(server: RunningServer) -> None:
    """Each goes at another moment: before its request is whole, while it waits, between tokens, at the end."""
    dice = random.Random(SEED)

    async def vanish(good: GoodClient) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(dice.uniform(0.0, 1.0)):
                await good.ask(dice.choice(PROMPTS), max_tokens=400)

    async with (
        httpx.AsyncClient(base_url=server.http_url, timeout=LIMIT_S) as http,
        grpc.aio.insecure_channel(server.grpc_target) as channel,
    ):
        good = GoodClient(http, channel)
        alone = await good.ask(PROMPTS[0])
        before = weights_of(server.status())  # it is resident now
        for _ in range(4):
            await asyncio.gather(*(vanish(good) for _ in range(16)))
        check_idle(server)
        assert await good.ask(PROMPTS[0]) == alone
    check_idle(server)  # what a status says is as old as the last look at the workers
    assert all(
        replica["stats"]["kv_live_bytes"] == 0
        for each in server.status()["deployments"]
        for replica in each["replicas"]
    )
    assert weights_of(server.status()) == before
    check_no_fault(server)
