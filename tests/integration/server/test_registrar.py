"""The registrar over a real registry, store, packer and manager, with things happening while it packs."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from support.databases import ENGINES
from support.small_checkpoint import write_checkpoint

from engines.checkpoint.packer import ensure_packed
from engines.kinds import engine_kind
from memory_manager.config import DeviceBudget
from memory_manager.fleet.controller import MemoryManager
from memory_manager.host.cache import HostCache
from memory_manager.ports import ArtifactRef
from model_registry.database import open_database
from model_registry.importing.hub import Hub
from model_registry.importing.importer import Importer
from model_registry.progress import Progress
from model_registry.records import VersionRecord
from model_registry.registry import Registry
from model_registry.store import ArtifactStore
from mooring.errors import (
    ArtifactError,
    ConflictError,
    InvalidRequestError,
    ModelNotFoundError,
    ModelUnavailableError,
    ShuttingDownError,
)
from mooring.policy import DeploymentPolicy
from mooring.server.file_reader import FileReader
from mooring.units import MIB
from router.control.directory import DeploymentDirectory
from router.control.registrar import Registrar, Registration

pytestmark = pytest.mark.integration


@dataclass
class HeldPacker:
    """The real packer, which gives its artifact away when the test lets it."""

    packed_root: Path
    packed: asyncio.Event = field(default_factory=asyncio.Event)
    go: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(
        self, folder: Path, digest: str, precision: str, progress: Callable[[int, int], None]
    ) -> ArtifactRef:
        artifact = await ensure_packed(folder, digest, precision, self.packed_root, progress)
        self.packed.set()
        await self.go.wait()
        return artifact


@dataclass
class House:
    """A registrar and what it works on."""

    root: Path
    registrar: Registrar
    packer: HeldPacker

    @property
    def managed(self) -> list[str]:
        return [each.name for each in self.registrar.manager.snapshot().deployments]

    def stored(self) -> list[str]:
        """Files of the store that belong to a model."""
        folders = (self.root / "store" / "artifacts", self.root / "store" / "packed")
        return [path.name for folder in folders for path in folder.glob("[!.]*") if path.is_dir()]

    async def register(self, name: str, source: Path) -> None:
        await self.registrar.ensure(name, str(source), {})


@asynccontextmanager
async def opened(root: Path, *, engine: str = "null", held: bool = False) -> AsyncIterator[House]:
    """As the server does it; a second one over the same folder is the server started again."""
    database = open_database(f"sqlite:///{root / 'registry.sqlite3'}")
    registry = Registry(database, ENGINES)
    store = ArtifactStore(root / "store")
    cache = HostCache(64 * MIB)
    packer = HeldPacker(root / "store" / "packed")
    if not held:
        packer.go.set()
    manager = MemoryManager([DeviceBudget("cpu", 64 * MIB)], cache)
    kind = engine_kind(engine)
    importer = Importer(store, registry, FileReader("null"), Hub(), root / "downloads")
    directory = DeploymentDirectory()
    directory.complete()
    registrar = Registrar(registry, store, importer, packer, manager, directory, engine, kind.kv_bytes)
    try:
        async with asyncio.timeout(60):
            yield House(root, registrar, packer)
    finally:
        await registrar.stop(0)
        await manager.stop()
        await cache.close()
        database.dispose()


async def ended(registration: Registration) -> None:
    while registration.state == "running":  # noqa: ASYNC110 - as its clients do, it is asked again and again
        await asyncio.sleep(0.005)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "source")


async def test_a_deployment_deleted_while_it_is_packed_stays_deleted(tmp_path: Path, source: Path) -> None:
    async with opened(tmp_path, held=True) as house:
        registration = house.registrar.start("m", str(source), {})
        await house.packer.packed.wait()
        await house.registrar.delete("m")
        house.packer.go.set()
        await ended(registration)
        assert house.managed == []
        with pytest.raises(ModelNotFoundError):
            house.registrar.directory.get("m")
        await house.registrar.delete_model("m")
        assert house.stored() == []


async def test_a_model_deleted_while_it_is_packed_leaves_no_files(tmp_path: Path, source: Path) -> None:
    async with opened(tmp_path, held=True) as house:
        registration = house.registrar.start("m", str(source), {})
        await house.packer.packed.wait()
        await house.registrar.delete("m")
        await house.registrar.delete_model("m")
        assert house.stored(), "packed, and noted nowhere yet"
        house.packer.go.set()
        await ended(registration)
        assert house.managed == []
        assert house.stored() == []


async def test_of_two_changes_at_once_the_registry_has_the_last_word(tmp_path: Path, source: Path) -> None:
    async with opened(tmp_path) as house:
        await house.register("m", source)
        house.packer.go.clear()
        slow = asyncio.create_task(house.registrar.update("m", {"max_model_len": 100}))
        house.packer.packed.clear()
        await house.packer.packed.wait()
        fast = asyncio.create_task(house.registrar.update("m", {"max_model_len": 50}))
        house.packer.packed.clear()
        await house.packer.packed.wait()
        house.packer.go.set()
        await asyncio.gather(slow, fast)
        assert house.registrar.directory.get("m").max_model_len == 50


async def test_what_was_not_packed_when_the_server_died_is_packed_by_the_next(
    tmp_path: Path, source: Path
) -> None:
    async with opened(tmp_path, held=True) as house:
        registration = house.registrar.start("m", str(source), {"priority": 3})
        await house.packer.packed.wait()
        await house.registrar.stop(0)
        assert (registration.state, registration.error) == ("failed", "the server shut down")
    async with opened(tmp_path) as house:
        await house.registrar.restore()
        assert house.managed == ["m"]
        assert house.registrar.directory.get("m").residency() == "cold"


async def test_after_a_stop_nothing_more_is_copied_or_registered(tmp_path: Path, source: Path) -> None:
    async with opened(tmp_path) as house:
        await house.registrar.stop(0)
        with pytest.raises(ShuttingDownError):
            await house.register("m", source)
        assert house.registrar.registry.list_models() == []
        assert house.stored() == []


async def test_a_deployment_whose_files_are_gone_is_withheld_and_can_be_deleted(
    tmp_path: Path, source: Path
) -> None:
    async with opened(tmp_path) as house:
        await house.register("broken", source)
        await house.register("whole", write_checkpoint(tmp_path / "other", seed=1))
        digest = house.registrar.registry.get_version("broken").digest
    shutil.rmtree(tmp_path / "store" / "artifacts" / digest)
    async with opened(tmp_path) as house:
        await house.registrar.restore()
        assert house.managed == ["whole"]
        with pytest.raises(ModelUnavailableError, match=digest):
            house.registrar.directory.get("broken")
        for ask in (house.registrar.sleep, house.registrar.wake):
            with pytest.raises(ModelUnavailableError, match=digest):
                await ask("broken")
        await house.registrar.update("broken", {"priority": 1})
        assert house.registrar.directory.reason("broken")
        await house.register("broken", source)
        assert house.managed == ["whole", "broken"]
        shutil.rmtree(tmp_path / "store" / "artifacts" / digest)
        await house.registrar.update("broken", {"priority": 2})
        assert house.managed == ["whole"]
        await house.registrar.delete("broken")
        with pytest.raises(ModelNotFoundError):
            house.registrar.directory.get("broken")


async def test_a_deployment_of_another_engine_is_withheld(tmp_path: Path, source: Path) -> None:
    async with opened(tmp_path) as house:
        await house.register("m", source)
    async with opened(tmp_path, engine="torch") as house:
        await house.registrar.restore()
        with pytest.raises(ModelUnavailableError, match="--engine null"):
            house.registrar.directory.get("m")


async def test_a_start_with_the_same_model_leaves_it_disabled(tmp_path: Path, source: Path) -> None:
    async with opened(tmp_path) as house:
        await house.register("m", source)
        await house.registrar.update("m", {"enabled": False})
        await house.register("m", source)
        with pytest.raises(ModelUnavailableError, match="disabled"):
            house.registrar.directory.get("m")


async def test_a_source_that_is_gone_is_no_reason_not_to_serve_what_it_gave(
    tmp_path: Path, source: Path
) -> None:
    async with opened(tmp_path) as house:
        await house.register("m", source)
        await asyncio.to_thread(source.rename, tmp_path / "moved")
        await house.registrar.ensure("m", str(source), {"priority": 5})
        assert house.managed == ["m"]
        assert house.registrar.registry.get_deployment("m").policy.priority == 5
        for name, missing in (("m", "elsewhere"), ("new", "source")):
            with pytest.raises(ArtifactError, match="there is nothing at"):
                await house.register(name, tmp_path / missing)


async def test_one_registration_of_a_name_at_a_time(tmp_path: Path, source: Path) -> None:
    async with opened(tmp_path, held=True) as house:
        first = house.registrar.start("m", str(source), {})
        with pytest.raises(ConflictError, match="being registered"):
            house.registrar.start("m", str(source), {})
        assert house.registrar.get(first.id) is first
        house.packer.go.set()
        await ended(first)
        assert first.stage in ("pack", "copy")
        assert house.registrar.start("m", str(source), None).id != first.id


async def test_a_policy_that_cannot_be_is_refused_before_anything_is_copied(
    tmp_path: Path, source: Path
) -> None:
    async with opened(tmp_path) as house:
        with pytest.raises(InvalidRequestError) as caught:
            house.registrar.start("m", str(source), {"idle_timeout_s": float("inf")})
        assert caught.value.param == "idle_timeout_s"
        assert (house.registrar.list(), house.stored()) == ([], [])


async def test_many_slow_registrations_leave_threads_for_others(tmp_path: Path, source: Path) -> None:
    let_go = threading.Event()
    async with opened(tmp_path) as house:

        def slow(model: str, source: str, progress: Progress | None = None) -> VersionRecord:
            let_go.wait()
            raise ArtifactError("it took too long")

        with patch.object(house.registrar.importer, "register", slow):
            running = [house.registrar.start(f"m{number}", str(source), None) for number in range(40)]
            await asyncio.sleep(0)
            try:
                await asyncio.wait_for(asyncio.to_thread(house.registrar.registry.list_models), 20)
            finally:
                let_go.set()
            for registration in running:
                await ended(registration)
        assert {each.error for each in running} == {"it took too long"}


async def test_auto_gives_16_bit_checkpoints_the_machines_precision_and_leaves_others_their_own(
    tmp_path: Path, source: Path
) -> None:
    half = write_checkpoint(tmp_path / "half", dtype=np.float16)
    for machines in ("bf16", "fp32"):  # the folder is taken to another machine
        async with opened(tmp_path) as house:
            house.registrar.precision_for_16_bit = machines
            await house.registrar.restore()
            await house.register("half", half)
            await house.register("full", source)
            await house.registrar.create(f"made-for-{machines}", "half", None, DeploymentPolicy())
            deployments = house.registrar.registry.list_deployments()
            found = {each.name: each.variant.precision for each in deployments}
            assert (found["half"], found["full"]) == (machines, "fp32")
            assert found[f"made-for-{machines}"] == machines
    assert found["made-for-bf16"] == "bf16"  # nobody asked for another


async def test_a_source_that_never_changes_is_read_once(tmp_path: Path, source: Path) -> None:
    async with opened(tmp_path) as house:
        await house.registrar.ensure("m", str(source), {}, never_changes=True)
    (source / "config.json").unlink()
    async with opened(tmp_path) as house:
        await house.registrar.restore()
        await house.registrar.ensure("m", str(source), {"priority": 3}, never_changes=True)
        assert house.registrar.registry.get_deployment("m").policy.priority == 3
        with patch.object(house.registrar.importer, "register") as read:
            await house.registrar.ensure("m", str(source), {}, never_changes=True)
        assert not read.called
