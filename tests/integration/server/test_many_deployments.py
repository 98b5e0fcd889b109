"""What the doors' lists cost with many deployments: each deployment is looked at once, however it is asked."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import grpc
import httpx
import pytest
from support.databases import ENGINES
from support.router_doors import ScriptedSource, services
from support.scripted_answer import answer
from support.small_checkpoint import write_checkpoint

from engines.checkpoint.model_config import sequence_kv_bytes
from engines.checkpoint.packer import ensure_packed
from engines.kinds import engine_kind
from memory_manager.config import DeviceBudget
from memory_manager.fleet.controller import MemoryManager
from memory_manager.fleet.records import Deployment
from memory_manager.host.cache import HostCache
from memory_manager.ports import ArtifactRef
from model_registry.database import open_database
from model_registry.importing.hub import Hub
from model_registry.importing.importer import Importer
from model_registry.registry import Registry
from model_registry.store import ArtifactStore
from mooring.server.file_reader import FileReader
from mooring.units import MIB
from mooring.v1 import inference_pb2 as pb
from mooring.v1 import inference_pb2_grpc
from router.control.directory import DeploymentDirectory
from router.control.fitting import Fitting
from router.control.journal import Journal, JournalConfig
from router.control.registrar import Registrar
from router.control.registrations import Registrations
from router.control.served_engine import ServedEngine
from router.doors.admin.routes import AdminServices, create_admin_router
from router.doors.grpc_app import create_grpc_server
from router.doors.http.access import OperatorKeys
from router.doors.http_app import create_app
from router.doors.kserve.core import KServe
from router.doors.kserve.repository import DeploymentRepository
from router.feed.feed import Feed, FeedSources
from router.intake import Intake

pytestmark = pytest.mark.integration

NUM_DEPLOYMENTS = 200


@dataclass
class Doors:
    """The gRPC and HTTP doors over one registrar."""

    stub: Any
    http: httpx.AsyncClient

    async def get(self, path: str) -> Any:
        response = await self.http.get(f"/admin/v1{path}", headers={"authorization": "Bearer admin"})
        assert response.status_code == 200, response.text
        return response.json()


def fill(registry: Registry) -> None:
    """Deploys the first model under many more names."""
    for number in range(1, NUM_DEPLOYMENTS):
        registry.create_deployment(f"m{number}", "m0", None, "fp32", "null")


@pytest.fixture
async def doors(tmp_path: Path) -> AsyncIterator[Doors]:
    database = open_database(f"sqlite:///{tmp_path / 'registry.sqlite3'}")
    registry, store, cache = (
        Registry(database, ENGINES),
        ArtifactStore(tmp_path / "store"),
        HostCache(64 * MIB),
    )
    manager = MemoryManager([DeviceBudget("cpu", 64 * MIB)], cache)
    directory = DeploymentDirectory()
    packed: list[ArtifactRef] = []

    async def pack(folder: Path, digest: str, precision: str, progress: Any) -> ArtifactRef:
        if not packed:  # they are all of one version
            packed.append(await ensure_packed(folder, digest, precision, tmp_path / "packed", progress))
        return packed[0]

    importer = Importer(store, registry, FileReader("null"), Hub(), tmp_path / "downloads")
    engine = ServedEngine(pack, sequence_kv_bytes, engine_kind("null").weights_bytes)
    registrar = Registrar(registry, store, importer, manager, directory, {"null": engine}, "null")
    await registrar.ensure("m0", str(write_checkpoint(tmp_path / "source")), {})
    fill(registry)
    await registrar.restore()
    served = replace(services(ScriptedSource(answer), []), models=directory)
    app = create_app(served, OperatorKeys("admin"))
    journal = Journal(registry, JournalConfig(max_kept=1000))
    registrations = Registrations(registrar, tmp_path / "registrations")
    sources = FeedSources("0", manager, registrar, registrations, lambda: (), {}, cache, served.metrics)
    admin = AdminServices(
        registry,
        registrar,
        registrations,
        Fitting(registrar),
        manager,
        lambda: (),
        Feed(sources),
        journal,
        served.metrics,
    )
    app.include_router(create_admin_router(admin))
    intake = Intake(served)
    kserve = KServe(served, intake, DeploymentRepository(registrar))
    server = create_grpc_server(served, intake, kserve, "admin")
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    transport = httpx.ASGITransport(app)
    async with (
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as http,
    ):
        yield Doors(inference_pb2_grpc.InferenceStub(channel), http)
    await server.stop(None)
    await registrar.stop()
    await manager.stop()
    await cache.close()
    database.dispose()


@contextmanager
def looks() -> Iterator[list[int]]:
    """Counts how often this thread looks for a deployment's best replica, as each view of one does once."""
    count = [0]
    code = Deployment.best_replica.__code__

    def note(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and frame.f_code is code:
            count[0] += 1

    sys.setprofile(note)
    try:
        yield count
    finally:
        sys.setprofile(None)


async def test_lists_look_at_each_deployment_once_and_one_deployment_costs_one_look(doors: Doors) -> None:
    names = {f"m{number}" for number in range(NUM_DEPLOYMENTS)}
    get = doors.get
    with looks() as count:
        listed = await doors.stub.ListModels(pb.ListModelsRequest(), timeout=60)
    assert {(each.name, each.residency) for each in listed.models} == {(name, "cold") for name in names}
    assert count[0] == NUM_DEPLOYMENTS
    for ask in (partial(get, "/deployments"), partial(get, "/status")):
        with looks() as count:
            shown = await ask()
        rows = shown["deployments"] if isinstance(shown, dict) else shown
        assert {(row["name"], row["residency"]) for row in rows} == {(name, "cold") for name in names}
        assert count[0] == NUM_DEPLOYMENTS
    with looks() as count:
        assert (await get("/deployments/m7"))["residency"] == "cold"
    assert count[0] == 1
    (model,) = await get("/models")
    assert set(model["deployments"]) == names
