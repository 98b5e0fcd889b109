"""Connections of the gRPC port from one address."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import grpc
import pytest
from support.kserve_doors import ADMIN_KEY, MemoryRepository
from support.router_doors import ScriptedSource, served_model, services, write_model_folder
from support.scripted_answer import TOKENIZER, answer

from mooring.server.doors import grpc_door
from mooring.v1 import inference_pb2 as pb
from mooring.v1 import inference_pb2_grpc
from router.doors.grpc.errors import Context, client_network_of
from router.doors.grpc_app import create_grpc_server
from router.doors.kserve.core import KServe
from router.intake import Intake

pytestmark = pytest.mark.integration

SOON_S, AT_LAST_S = 1.0, 20.0  # it looks twice a second


@contextlib.asynccontextmanager
async def door(root: Path, max_per_address: int) -> AsyncIterator[str]:
    folder = write_model_folder(root / "model", TOKENIZER)
    shared = services(ScriptedSource(answer), [served_model("tiny", folder)])
    intake = Intake(shared)
    server = create_grpc_server(shared, intake, KServe(shared, intake, MemoryRepository([])), ADMIN_KEY)
    async with grpc_door(server, "127.0.0.1", 0, max_per_address=max_per_address) as target:
        yield target


async def test_an_address_that_has_too_many_loses_the_latest_and_no_other_address_does(
    tmp_path: Path,
) -> None:
    async with door(tmp_path, 3) as target, grpc.aio.insecure_channel(target) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        await stub.ListModels(pb.ListModelsRequest(), timeout=10)
        with contextlib.ExitStack() as stack:
            connections = [stack.enter_context(connected(target, "127.0.0.1")) for _ in range(2)]
            assert await closed(connections, SOON_S) == [False, False]
            connections += [stack.enter_context(connected(target, "127.0.0.1")) for _ in range(5)]
            other = stack.enter_context(connected(target, "127.0.0.2"))
            assert await closed(connections[2:], AT_LAST_S) == [True] * 5
            assert await closed([*connections[:2], other], SOON_S) == [False] * 3
            await stub.ListModels(pb.ListModelsRequest(), timeout=10, wait_for_ready=False)
            connections[0].close()
            late = stack.enter_context(connected(target, "127.0.0.1"))
            assert await closed([connections[1], late], SOON_S) == [False, False]


def connected(target: str, source: str) -> socket.socket:
    host, _, port = target.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=5, source_address=(source, 0))


async def closed(connections: list[socket.socket], within_s: float) -> list[bool]:
    """Whether the server hangs up on each in this time, after what it says at first."""

    async def is_closed(connection: socket.socket) -> bool:
        connection.setblocking(False)
        try:
            async with asyncio.timeout(within_s):
                while await asyncio.get_running_loop().sock_recv(connection, 1000):
                    pass
        except TimeoutError:
            return False
        except ConnectionResetError:
            pass
        return True

    return list(await asyncio.gather(*(is_closed(each) for each in connections)))


@pytest.mark.parametrize(
    ("peer", "network"),
    [
        ("ipv4:192.0.2.7:4711", "192.0.2.7"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:4711", "2001:db8:1:2::/64"),
        ("ipv6:[::1]:4711", "::/64"),
        ("unix:", "unix"),
    ],
)
def test_a_call_counts_for_the_network_that_it_comes_from(peer: str, network: str) -> None:
    class Call:
        def peer(self) -> str:
            return peer

    assert client_network_of(cast("Context", Call())) == network
