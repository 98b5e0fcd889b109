"""Clients that stop reading in the middle, at every door: they hold up nobody and keep little, and may go on
later to find all of it, or go away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest
from support.pausing_readers import BODY, READERS, Texts, paused
from support.running_server import RunningServer
from support.server_probes import check_idle, check_no_fault
from support.small_checkpoint import NULL_ENVIRONMENT, write_checkpoint

from mooring.units import MIB

pytestmark = pytest.mark.integration

# The other two doors are in test_readers_given_up.py; `make test-slow` has all four in both.
DOORS = [pytest.param(door, marks=[] if door in ("http", "grpc") else [pytest.mark.slow]) for door in READERS]
NUM_OTHERS = 60
MAX_GROWTH_BYTES = 96 * MIB


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    root = tmp_path_factory.mktemp("slow_readers")
    flags = ["--engine", "null", "--memory-budget", "64MiB"]
    with RunningServer(
        root / "data", {"a": write_checkpoint(root / "a")}, flags, NULL_ENVIRONMENT
    ) as running:
        yield running


@pytest.fixture(scope="module")
def whole(server: RunningServer) -> Texts:
    """What each choice says to a client that reads."""
    answer = server.client.post(f"{server.http_url}/v1/completions", json={**BODY, "stream": False})
    return {choice["index"]: choice["text"] for choice in answer.json()["choices"]}


# The others ---------------------------------------------------------------------------------------------


async def stream_others(server: RunningServer) -> float:
    """Streams many answers side by side; how long that took."""
    limits = httpx.Limits(max_connections=NUM_OTHERS)
    body = {**BODY, "n": 1, "max_tokens": 40}

    async def one() -> None:
        async with http.stream("POST", "/v1/completions", json=body) as answer:
            lines = [line async for line in answer.aiter_lines() if line]
            assert lines[-1] == "data: [DONE]"

    async with httpx.AsyncClient(base_url=server.http_url, timeout=30, limits=limits) as http:
        await one()
        began = time.monotonic()
        await asyncio.gather(*(one() for _ in range(NUM_OTHERS)))
        return time.monotonic() - began


@pytest.mark.parametrize("door", DOORS)
async def test_one_that_stands_still_holds_up_nobody_and_finds_all_of_it_later(
    server: RunningServer, whole: Texts, door: str
) -> None:
    alone_s = await stream_others(server)
    process = psutil.Process(server.process.pid)
    before_bytes = process.memory_full_info().uss
    async with paused(server, door) as (pieces, texts):
        await asyncio.sleep(0.5)  # the engine has long been done with it, or waits
        beside_s = await stream_others(server)
        assert process.memory_full_info().uss - before_bytes < MAX_GROWTH_BYTES
        async for index, text in pieces:
            texts[index] += text
    assert texts == whole
    assert beside_s < 3 * alone_s + 10
    check_idle(server)


@pytest.mark.parametrize("door", READERS)
async def test_one_that_goes_away_while_it_stands_still_leaves_nothing(
    server: RunningServer, door: str
) -> None:
    process = psutil.Process(server.process.pid)
    num_files = process.num_fds()
    for _ in range(3):
        async with paused(server, door):
            await asyncio.sleep(0.1)
    check_idle(server)
    deadline = time.monotonic() + 5
    while process.num_fds() > num_files + 2:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    check_no_fault(server)
