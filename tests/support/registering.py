"""A registrar and what it works on, as a server has them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from engines.checkpoint.packer import ensure_packed
from engines.kinds import engine_kind
from memory_manager.config import DeviceBudget
from memory_manager.fleet.controller import MemoryManager
from memory_manager.host.cache import HostCache
from memory_manager.ports import ArtifactRef
from model_registry.database import open_database
from model_registry.importing.hub import Hub
from model_registry.importing.importer import Importer
from model_registry.registry import Registry
from model_registry.store import ArtifactStore
from mooring.server.file_reader import FileReader
from mooring.units import MIB
from router.control.directory import DeploymentDirectory
from router.control.registrar import Registrar
from router.control.registration import Registration
from router.control.registrations import Registrations
from router.control.served_engine import ServedEngine
from support.databases import ENGINES

__all__ = ["HeldPacker", "House", "ended", "opened"]


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
    registrations: Registrations
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
    kind = engine_kind("null")
    served = ServedEngine(packer, kind.kv_bytes, kind.weights_bytes)
    importer = Importer(store, registry, FileReader("null"), Hub(), root / "downloads")
    directory = DeploymentDirectory()
    directory.complete()
    engines = dict.fromkeys(ENGINES, served)
    registrar = Registrar(registry, store, importer, manager, directory, engines, engine)
    registrations = Registrations(registrar, root / "registrations")
    await registrations.restore()
    try:
        async with asyncio.timeout(60):
            yield House(root, registrar, registrations, packer)
    finally:
        await registrations.stop(0)
        await registrar.stop()
        await manager.stop()
        await cache.close()
        database.dispose()


async def ended(registration: Registration) -> None:
    """Waits until a registration runs no longer."""
    while registration.state == "running":  # noqa: ASYNC110 - as its clients do, it is asked again and again
        await asyncio.sleep(0.005)
