"""Brings models from a source to the doors: store, registry, packing, manager, directory.

The registry says what should be served; the memory manager and the directory hold what is. Everything that
changes the first for a running server goes through here, so that the others follow.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from engines.torch.config import ModelConfig, kv_groups
from memory_manager.controller import MemoryManager
from memory_manager.kv_spec import kv_bytes_for_tokens, round_to_pages
from memory_manager.ports import ArtifactRef, DeploymentSpec
from model_registry.importer import Importer
from model_registry.progress import Progress
from model_registry.records import DeploymentPolicy, DeploymentRecord, VersionRecord
from model_registry.registry import Registry
from model_registry.store import ArtifactStore
from mooring.errors import ConflictError, InternalError, ModelUnavailableError, MooringError, NotFoundError
from router.directory import DeploymentDirectory
from router.models import ServedModel
from router.sampling_defaults import GenerationDefaults

__all__ = ["Packer", "Registrar", "Registration", "deployment_spec"]

logger = logging.getLogger(__name__)

ELEMENT_BYTES = {"fp32": 4, "bf16": 2}
KEPT_REGISTRATIONS = 256  # ended ones whose outcome can still be asked for

Packer = Callable[[Path, str, str, Callable[[int, int], None]], Awaitable[ArtifactRef]]
"""(folder, digest, precision, progress) to the packed artifact; ``engines.packer.ensure_packed`` bound to
its folder. Raises ``ArtifactError``."""


@dataclass(slots=True)
class Registration:
    """How far a registration has come; ``error`` says why it failed."""

    id: str
    name: str
    source: str
    state: Literal["running", "done", "failed"] = "running"
    stage: str = "waiting"
    done_bytes: int = 0
    total_bytes: int = 0
    error: str | None = None

    def progress(self, stage: str, done_bytes: int, total_bytes: int) -> None:
        self.stage, self.done_bytes, self.total_bytes = stage, done_bytes, total_bytes


def deployment_spec(
    record: DeploymentRecord, artifact: ArtifactRef, default_idle_timeout_s: float | None
) -> DeploymentSpec:
    """What the memory manager needs to know of a deployment.

    The KV guarantee is by default what one sequence of the longest length needs, so that every request
    that is admitted can be finished whatever else happens.
    """
    version, policy = record.variant.version, record.policy
    config = ModelConfig.from_dict(version.description["config"])
    max_model_len = policy.max_model_len or int(version.description["max_model_len"])
    groups = kv_groups(config, ELEMENT_BYTES[record.variant.precision])
    guarantee_bytes = policy.kv_guarantee_bytes
    if guarantee_bytes is None:
        guarantee_bytes = kv_bytes_for_tokens(groups, max_model_len)
    idle_timeout_s = policy.idle_timeout_s if policy.idle_timeout_s is not None else default_idle_timeout_s
    return DeploymentSpec(
        name=record.name,
        artifact=artifact,
        weights_bytes=round_to_pages(artifact.num_bytes),
        kv_guarantee_bytes=round_to_pages(guarantee_bytes),
        max_model_len=max_model_len,
        kv_cap_bytes=policy.kv_cap_bytes,
        enabled=policy.enabled,
        pinned=policy.pinned,
        priority=policy.priority,
        idle_timeout_s=idle_timeout_s,
        min_replicas=policy.min_replicas,
        max_replicas=policy.max_replicas,
    )


@dataclass(slots=True)
class Registrar:
    """One for a server; lives on its event loop. Attributes are its collaborators and defaults."""

    registry: Registry
    store: ArtifactStore
    importer: Importer
    pack: Packer
    manager: MemoryManager
    directory: DeploymentDirectory
    precision: str = "auto"
    engine: str = "torch"
    default_idle_timeout_s: float | None = None
    _registrations: dict[str, Registration] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    # Start and stop.

    async def restore(self) -> None:
        """Serves every deployment of the registry; one that cannot be served is withheld with its reason."""
        for record in await asyncio.to_thread(self.registry.list_deployments):
            await self._serve(record)

    async def ensure(self, name: str, source: str, policy: Mapping[str, Any]) -> None:
        """Registers and deploys a model unless it is; settings of ``policy`` are made so.

        Raises:
            MooringError: the source cannot be registered.
        """
        registration = Registration(secrets.token_hex(8), name, source)
        version = await self._register(registration)
        await self._deploy(registration, version, policy)

    async def stop(self, grace_s: float) -> None:
        """Lets running registrations end within the grace period; then they are dropped."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=grace_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    # Registrations.

    def start(self, name: str, source: str, policy: DeploymentPolicy | None) -> Registration:
        """Begins to register a model, and to deploy it under its name where there is a policy.

        Raises:
            ConflictError: one of that name is being registered.
        """
        if any(each.name == name and each.state == "running" for each in self._registrations.values()):
            raise ConflictError(f"model {name!r} is being registered already", param="name")
        registration = Registration(secrets.token_hex(8), name, source)
        self._registrations[registration.id] = registration
        self._forget_old()
        task = asyncio.create_task(self._run(registration, policy), name=f"register-{name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return registration

    def get(self, registration_id: str) -> Registration:
        """Raises ``NotFoundError``."""
        if registration_id not in self._registrations:
            raise NotFoundError(f"there is no registration {registration_id!r}")
        return self._registrations[registration_id]

    def list(self) -> list[Registration]:
        return list(self._registrations.values())

    # Deployments.

    async def create(
        self, name: str, model: str, version: int | None, policy: DeploymentPolicy
    ) -> DeploymentRecord:
        """Deploys a registered model; raises what ``Registry.create_deployment`` raises."""
        record = await asyncio.to_thread(
            self.registry.create_deployment, name, model, version, self.precision, self.engine, policy
        )
        await self._serve(record)
        return record

    async def update(self, name: str, changes: Mapping[str, object]) -> DeploymentRecord:
        """Changes a deployment; raises what ``Registry.update_deployment`` raises."""
        record = await asyncio.to_thread(self.registry.update_deployment, name, changes)
        await self._serve(record)
        return record

    async def delete(self, name: str) -> None:
        """Stops serving a deployment. Running requests finish. Raises ``NotFoundError``."""
        await asyncio.to_thread(self.registry.delete_deployment, name)
        if self.directory.reason(name) is None:
            self.manager.remove_deployment(name)
        self.directory.forget(name)

    async def delete_model(self, name: str) -> None:
        """Removes a model, and from the store what nothing else uses; raises what
        ``Registry.delete_model`` raises."""
        await asyncio.to_thread(self._delete_model, name)

    def _delete_model(self, name: str) -> None:
        for version in self.registry.list_versions(name):
            self.importer.delete_version(name, version.number)
        self.registry.delete_model(name)

    # The steps.

    async def _run(self, registration: Registration, policy: DeploymentPolicy | None) -> None:
        try:
            version = await self._register(registration)
            if policy is not None:
                await self._deploy(registration, version, asdict(policy))
            registration.state = "done"
        except MooringError as error:
            registration.state, registration.error = "failed", error.message
            logger.warning(
                "model %s from %s is not registered: %s", registration.name, registration.source, error
            )
        except asyncio.CancelledError:
            registration.state, registration.error = "failed", "the server shut down"
            raise
        except Exception as error:  # a task's boundary: nobody else would hear of it
            registration.state, registration.error = "failed", f"internal error: {error!r}"
            logger.exception("registering %s failed", registration.name)

    async def _deploy(
        self, registration: Registration, version: VersionRecord, policy: Mapping[str, Any]
    ) -> None:
        """Makes the deployment what the registration says, new or not. Raises ``MooringError`` where it
        cannot be served."""
        name = registration.name
        try:
            changes = {**policy, "version": version.number, "precision": self.precision}
            record = await asyncio.to_thread(self.registry.update_deployment, name, changes)
        except NotFoundError:
            record = await asyncio.to_thread(
                self.registry.create_deployment,
                name,
                version.model,
                version.number,
                self.precision,
                self.engine,
                DeploymentPolicy(**policy),
            )
        await self._serve(record, registration.progress)
        if (reason := self.directory.reason(name)) is not None:
            raise ModelUnavailableError(reason)

    async def _register(self, registration: Registration) -> VersionRecord:
        return await asyncio.to_thread(
            self.importer.register, registration.name, registration.source, registration.progress
        )

    async def _serve(self, record: DeploymentRecord, progress: Progress | None = None) -> None:
        """Makes the manager and the directory follow the registry."""
        version = record.variant.version

        def report(done_bytes: int, total_bytes: int) -> None:
            if progress is not None:
                progress("pack", done_bytes, total_bytes)

        folder = self.store.get(version.digest).path
        try:
            artifact = await self.pack(folder, version.digest, record.variant.precision, report)
        except MooringError as error:
            logger.error("deployment %s cannot be served: %s", record.name, error.message)
            if self.directory.reason(record.name) is None and self._is_managed(record.name):
                self.manager.remove_deployment(record.name)
            self.directory.withhold(record.name, error.message)
            return
        if record.variant.packed_key != artifact.key:
            await asyncio.to_thread(
                self.registry.set_packed, record.variant.id, artifact.key, artifact.num_bytes
            )
        spec = deployment_spec(record, artifact, self.default_idle_timeout_s)
        self.manager.upsert_deployment(spec)
        self.directory.serve(
            ServedModel(
                name=record.name,
                folder=folder,
                max_model_len=spec.max_model_len,
                created_s=int(record.created_at_s),
                residency=lambda: self._residency(record.name),
                engine=record.engine,
                defaults=GenerationDefaults.from_mapping(version.description["generation_config"]),
            )
        )

    def _is_managed(self, name: str) -> bool:
        return any(each.name == name for each in self.manager.snapshot().deployments)

    def _residency(self, name: str) -> str:
        for deployment in self.manager.snapshot().deployments:
            if deployment.name == name:
                return deployment.residency.value
        raise InternalError(f"deployment {name!r} is served and not managed")

    def _forget_old(self) -> None:
        ended = [each.id for each in self._registrations.values() if each.state != "running"]
        for registration_id in ended[: max(0, len(self._registrations) - KEPT_REGISTRATIONS)]:
            del self._registrations[registration_id]
