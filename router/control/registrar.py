"""Brings models from a source to the doors: store, registry, packing, manager, directory.

The registry says what should be served; the memory manager and the directory hold what is. Everything that
changes the first for a running server goes through here, so that the others follow.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from memory_manager.fleet.controller import MemoryManager
from memory_manager.fleet.events import EventKind, Reporter
from memory_manager.ports import ArtifactRef
from model_registry.importing.hub import HUB_SCHEME
from model_registry.importing.importer import Importer
from model_registry.progress import Progress, no_progress
from model_registry.records import DeploymentRecord, VersionRecord
from model_registry.registry import Registry
from model_registry.store import ArtifactStore
from mooring.errors import (
    ArtifactError,
    ConfigurationError,
    ConflictError,
    InternalError,
    MooringError,
    NotFoundError,
    ShuttingDownError,
)
from mooring.policy import DeploymentPolicy
from router.control.deployment_spec import deployment_spec
from router.control.directory import DeploymentDirectory
from router.control.retries import Retries, RetryConfig
from router.control.served_engine import ServedEngine
from router.request.sampling import GenerationDefaults
from router.request.served_model import ServedModel

__all__ = ["Registrar"]

logger = logging.getLogger(__name__)
T = TypeVar("T")

MAX_IMPORTS = 32  # at a time; others wait for their turn


@dataclass(slots=True)
class Registrar:
    """The registrar of a server; lives on its event loop.

    If the registry changes, the manager and the directory follow under the same lock, so that all three see
    changes in one order. Packing may take minutes and is done outside of the lock; afterwards the registrar looks
    up what has become of the deployment meanwhile.

    Attributes:
        engines: those that deployments can have, by name.
        engine: that of new deployments, unless they say another.
        precision: precision of new deployments; ``auto`` means the checkpoint's own, or for a 16-bit checkpoint
            ``precision_for_16_bit``.
        retries: pauses before a deployment that failed is tried again.
    """

    registry: Registry
    store: ArtifactStore
    importer: Importer
    manager: MemoryManager
    directory: DeploymentDirectory
    engines: Mapping[str, ServedEngine]
    engine: str
    precision: str = "auto"
    precision_for_16_bit: str = "bf16"
    reporter: Reporter = field(default_factory=lambda: Reporter(time.monotonic, lambda event: None))
    retries: RetryConfig = field(default_factory=RetryConfig)
    _records: dict[str, DeploymentRecord] = field(default_factory=dict)
    _following: asyncio.Lock = field(default_factory=asyncio.Lock)
    _stopped: bool = False
    _retries: Retries = field(init=False)
    # Downloads and copies take minutes, and wait for each other. On asyncio's own few threads they would keep
    # requests from the checks of their keys.
    _importing: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(MAX_IMPORTS, thread_name_prefix="import")
    )

    def __post_init__(self) -> None:
        self._retries = Retries(self._serve, self.retries)

    # Start and stop.

    async def restore(self) -> None:
        """Serves every deployment of the registry; one that cannot be served is withheld with its reason."""
        for record in await asyncio.to_thread(self.registry.list_deployments):
            await self._serve(record.name)

    async def ensure(
        self, name: str, source: str, policy: Mapping[str, Any], *, never_changes: bool = False
    ) -> None:
        """Registers and deploys a model unless it is; settings of ``policy`` are made so.

        A source that cannot be read any more (the hub is out of reach, the folder is gone) is no reason not
        to serve what it gave before.

        Args:
            never_changes: the source always holds the same; it is not read again if the model was registered
                from it before.

        Raises:
            MooringError: the source cannot be registered, or the model not served.
        """
        version = await asyncio.to_thread(self._registered_from, name, source)
        if version is None or not never_changes:
            try:
                version = await asyncio.wrap_future(self.importing(name, source, no_progress))
            except ArtifactError as error:
                if version is None:
                    raise
                logger.warning("model %s is served as it was registered before: %s", name, error.message)
        await self.deploy(name, version, policy)

    async def stop(self) -> None:
        """Tries nothing again; threads that still copy or download end at their next report of progress."""
        self._stopped = True
        await self._retries.stop()

    # The steps of a registration.

    def importing(self, name: str, source: str, report: Progress) -> Future[VersionRecord]:
        """Begins to import a version of a model on a thread; it raises what ``Importer.register`` raises."""
        return self._importing.submit(self.importer.register, name, source, self._until_stopped(report))

    async def packed_version(self, version: VersionRecord, report: Progress) -> ArtifactRef:
        """The artifact of a version, for the engine and in the precision of new deployments; made now if it was not
        before. A call that is cancelled has ended its packing when it returns.

        Raises:
            ArtifactError: it cannot be packed.
            NotFoundError: the version was deleted meanwhile.
        """
        digest = version.digest
        folder = self.store.get(digest).path
        pack = self.engines[self.engine].pack
        artifact = await pack(folder, digest, self._precision_of(version), partial(report, "pack"))
        if not await asyncio.to_thread(self.registry.has_digest, digest):
            await asyncio.to_thread(self.store.remove_packed, artifact.key)
            raise NotFoundError(
                f"version {version.number} of {version.model!r} was deleted while it was packed"
            )
        return artifact

    async def deploy(self, name: str, version: VersionRecord, policy: Mapping[str, Any]) -> None:
        """Serves a version under this name. Raises ``MooringError`` if that cannot be."""
        await asyncio.to_thread(self._note_deployed, name, version, policy)
        if (error := await self._serve(name)) is not None:
            raise error

    def version_numbers(self, model: str) -> set[int]:
        """Numbers of a model's versions; none if there is no such model. Blocks."""
        try:
            return set(self.registry.get_model(model).version_numbers)
        except NotFoundError:
            return set()

    async def delete_version(self, model: str, number: int) -> None:
        """Removes a version, and the model with its last one; from the store what nothing else uses. Raises what
        ``Importer.delete_version`` raises."""
        is_last = await asyncio.to_thread(self.version_numbers, model) == {number}
        delete = (
            self.importer.delete_model if is_last else partial(self.importer.delete_version, number=number)
        )
        await self.in_own_thread(partial(delete, model))

    # Deployments.

    def records(self) -> Mapping[str, DeploymentRecord]:
        """The registry's deployments as they were last followed, by name; without a look into the registry."""
        return self._records

    async def create(
        self, name: str, model: str, version: int | None, policy: DeploymentPolicy, engine: str | None = None
    ) -> DeploymentRecord:
        """Deploys a registered model; raises what ``Registry.create_deployment`` raises.

        Args:
            engine: that runs it; None for that of new deployments.
        """
        record = await asyncio.to_thread(self._create, name, model, version, policy, engine)
        await self._serve(name)
        return record

    async def update(self, name: str, changes: Mapping[str, object]) -> DeploymentRecord:
        """Changes a deployment; raises what ``Registry.update_deployment`` raises."""
        record = await asyncio.to_thread(self.registry.update_deployment, name, changes)
        await self._serve(name)
        return record

    async def delete(self, name: str) -> None:
        """Stops serving a deployment. Running requests finish. Raises ``NotFoundError``."""
        async with self._following:
            await asyncio.to_thread(self.registry.delete_deployment, name)
            self._retries.settled(name)
            record = self._records.pop(name, None)
            self._drop(name)
        if record is not None:
            await self.engines[record.engine].stop(name)

    async def sleep(self, name: str) -> None:
        """Puts a deployment to sleep; raises what ``MemoryManager.sleep`` raises, and
        ``ModelUnavailableError`` where it is not served."""
        self._check_managed(name)
        await self.manager.sleep(name)

    async def wake(self, name: str) -> None:
        """Makes a deployment resident; raises what ``MemoryManager.wake`` raises, and
        ``ModelUnavailableError`` where it is not served."""
        self._check_managed(name)
        await self.manager.wake(name)

    async def delete_model(self, name: str) -> None:
        """Removes a model, and from the store what nothing else uses; raises what
        ``Registry.delete_model`` raises."""
        await self.in_own_thread(partial(self.importer.delete_model, name))

    # The steps.

    async def in_own_thread(self, work: Callable[[], T]) -> T:
        """The result of work that may wait for the hub, or for others that read files."""
        return await asyncio.get_running_loop().run_in_executor(self._importing, work)

    def _until_stopped(self, report: Progress) -> Progress:
        def report_on(stage: str, done_bytes: int, total_bytes: int) -> None:
            if self._stopped:  # on the thread that copies, which nothing else can stop
                raise ShuttingDownError("the server shut down")
            report(stage, done_bytes, total_bytes)

        return report_on

    def _create(
        self,
        name: str,
        model: str,
        version: int | None,
        policy: DeploymentPolicy,
        engine: str | None = None,
    ) -> DeploymentRecord:
        found = self.registry.get_version(model, version)
        precision = self._precision_of(found)
        return self.registry.create_deployment(
            name, model, found.number, precision, engine or self.engine, policy
        )

    def _precision_of(self, version: VersionRecord) -> str:
        return self.precision_for(str(version.description["default_precision"]))

    def precision_for(self, own: str) -> str:
        """The precision in which new deployments of a model are served whose checkpoint has that of its own."""
        if self.precision != "auto":
            return self.precision
        return self.precision_for_16_bit if own == "bf16" else own

    def _note_deployed(self, name: str, version: VersionRecord, policy: Mapping[str, Any]) -> None:
        """Makes the registry's deployment of this name one of this version, new or not."""
        try:
            present = self.registry.get_deployment(name).variant.version
        except NotFoundError:
            self._create(name, version.model, version.number, DeploymentPolicy(**policy))
            return
        if present.model != version.model:
            raise ConflictError(
                f"deployment {name!r} is of model {present.model!r}: delete it, or use another name"
            )
        changes = {**policy, "version": version.number, "precision": self._precision_of(version)}
        self.registry.update_deployment(name, changes)

    def _registered_from(self, name: str, source: str) -> VersionRecord | None:
        """The version deployed under this name, if it is from this source: for a hub's default branch, at
        any commit."""
        try:
            version = self.registry.get_deployment(name).variant.version
        except NotFoundError:
            return None
        if source.startswith(HUB_SCHEME):
            same = version.source == source or version.source.startswith(f"{source}@")
        else:
            same = version.source == str(Path(source).expanduser().resolve())
        return version if same else None

    async def _serve(self, name: str) -> MooringError | None:
        """Makes the manager and the directory follow the registry, whatever it says by then; returns why
        the deployment cannot be served, where it cannot."""
        error: MooringError | None = None
        artifact: ArtifactRef | None = None
        try:
            packed_for = await asyncio.to_thread(self.registry.get_deployment, name)
            self._records[name] = packed_for
            artifact = await self._packed(packed_for)
        except MooringError as caught:
            error = caught
        async with self._following:
            try:
                record = await asyncio.to_thread(self.registry.get_deployment, name)
            except NotFoundError:
                self._retries.settled(name)
                self._records.pop(name, None)
                return None  # deleted meanwhile
            self._records[name] = record
            if artifact is not None and record.variant.id == packed_for.variant.id:
                self._retries.settled(name)
                self._follow(record, artifact)
            elif error is not None:
                self._withhold(name, error)
        return error

    def _withhold(self, name: str, error: MooringError) -> None:
        """The deployment cannot be served; it is tried again unless only another start can mend it."""
        figures: dict[str, int | float | str] = {"code": error.code, "while": "packing"}
        if not isinstance(error, ConfigurationError):
            figures["retry_in_s"] = self._retries.failed(name)
        logger.error("deployment %s cannot be served: %s", name, error.message)
        self.reporter.of_deployment(EventKind.FAILURE, name, error.message, figures)
        self._drop(name)
        self.directory.withhold(name, error.message)

    async def _packed(self, record: DeploymentRecord) -> ArtifactRef:
        """The artifact of a deployment's variant, for workers that are there by then. Raises ``MooringError`` where
        there can be none."""
        engine = self.engines.get(record.engine)
        if engine is None:
            raise ConfigurationError(f"this version of Mooring has no engine {record.engine!r}")
        variant, digest = record.variant, record.variant.version.digest
        folder = self.store.get(digest).path
        artifact = await engine.pack(folder, digest, variant.precision, lambda done, total: None)
        await engine.start(record.name)
        if variant.packed_key != artifact.key:
            await asyncio.to_thread(self._note_packed, variant.id, digest, artifact)
        return artifact

    def _note_packed(self, variant_id: int, digest: str, artifact: ArtifactRef) -> None:
        try:
            self.registry.set_packed(variant_id, artifact.key, artifact.num_bytes)
        except NotFoundError:  # the version was deleted while it was packed
            if not self.registry.has_digest(digest):
                self.store.remove_packed(artifact.key)
            raise

    def _follow(self, record: DeploymentRecord, artifact: ArtifactRef) -> None:
        version = record.variant.version
        spec = deployment_spec(record, artifact, self.engines[record.engine].kv_bytes)
        self.manager.upsert_deployment(spec)
        if not record.policy.enabled:
            self.directory.withhold(record.name, "it is disabled")
            return
        self.directory.serve(
            ServedModel(
                name=record.name,
                artifact_key=artifact.key,
                folder=self.store.get(version.digest).path,
                max_model_len=spec.max_model_len,
                created_s=int(record.created_at_s),
                residency=lambda: self._residency(record.name),
                whereabouts=lambda: self._whereabouts(record.name),
                engine=record.engine,
                defaults=GenerationDefaults.from_mapping(version.description["generation_config"]),
                version=version.number,
                policy=record.policy,
            )
        )

    def _drop(self, name: str) -> None:
        if self._is_managed(name):
            self.manager.remove_deployment(name)
        self.directory.forget(name)

    def _check_managed(self, name: str) -> None:
        """Raises what the directory says of a deployment that the manager does not have."""
        if not self._is_managed(name):
            self.directory.get(name)

    def _is_managed(self, name: str) -> bool:
        return self.manager.status(name) is not None

    def _residency(self, name: str) -> str:
        status = self.manager.status(name)
        if status is None:
            raise InternalError(f"deployment {name!r} is served and not managed")
        return status.residency.value

    def _whereabouts(self, name: str) -> tuple[str, str]:
        status = self.manager.status(name)
        return (
            ("cold", "it is served no longer") if status is None else (status.residency.value, status.reason)
        )
