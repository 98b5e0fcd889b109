"""TLS and mutual TLS on the gRPC door."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.certificates import Certificates, make_certificates
from support.kserve_doors import ADMIN_KEY, MemoryRepository
from support.router_doors import ScriptedSource, served_model, services, write_model_folder
from support.scripted_answer import TOKENIZER, answer

from mooring.config import TlsFiles
from mooring.errors import ConfigurationError
from mooring.server.doors import grpc_door
from mooring.v1 import inference_pb2 as pb
from mooring.v1 import inference_pb2_grpc
from router.doors.grpc_app import create_grpc_server
from router.doors.kserve.core import KServe
from router.intake import Intake

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def ours(root: Path) -> Certificates:
    return make_certificates(root / "ours")


@pytest.fixture(scope="module")
def strangers(root: Path) -> Certificates:
    return make_certificates(root / "strangers")


@contextlib.asynccontextmanager
async def door(root: Path, files: TlsFiles) -> AsyncIterator[str]:
    folder = write_model_folder(root / "model", TOKENIZER)
    shared = services(ScriptedSource(answer), [served_model("tiny", folder)])
    intake = Intake(shared)
    server = create_grpc_server(shared, intake, KServe(shared, intake, MemoryRepository([])), ADMIN_KEY)
    async with grpc_door(server, "127.0.0.1", 0, files) as target:
        yield target


async def status(target: str, credentials: grpc.ChannelCredentials | None) -> grpc.StatusCode:
    """How a call ends."""
    made: Any = grpc.aio.insecure_channel if credentials is None else grpc.aio.secure_channel
    async with made(target, *(() if credentials is None else (credentials,))) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        try:
            await stub.ListModels(pb.ListModelsRequest(), timeout=10)
        except grpc.aio.AioRpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def trusting(authority: Path, client: Certificates | None = None) -> grpc.ChannelCredentials:
    own = (None, None) if client is None else (client.client_key.read_bytes(), client.client.read_bytes())
    return grpc.ssl_channel_credentials(authority.read_bytes(), *own)


async def test_only_those_who_trust_the_authority_are_served_and_nobody_without_tls(
    root: Path, ours: Certificates, strangers: Certificates
) -> None:
    async with door(root, TlsFiles(ours.server, ours.server_key, None)) as target:
        assert await status(target, trusting(ours.authority)) is grpc.StatusCode.OK
        assert await status(target, trusting(strangers.authority)) is grpc.StatusCode.UNAVAILABLE
        assert await status(target, None) is grpc.StatusCode.UNAVAILABLE


async def test_with_a_client_authority_only_its_clients_are_served(
    root: Path, ours: Certificates, strangers: Certificates
) -> None:
    async with door(root, TlsFiles(ours.server, ours.server_key, ours.authority)) as target:
        assert await status(target, trusting(ours.authority, ours)) is grpc.StatusCode.OK
        assert await status(target, trusting(ours.authority)) is grpc.StatusCode.UNAVAILABLE
        assert await status(target, trusting(ours.authority, strangers)) is grpc.StatusCode.UNAVAILABLE


async def test_files_that_do_not_belong_together_are_named(
    root: Path, ours: Certificates, strangers: Certificates
) -> None:
    with pytest.raises(ConfigurationError, match=r"server\.pem"):
        async with door(root, TlsFiles(ours.server, strangers.server_key, None)):
            pass
