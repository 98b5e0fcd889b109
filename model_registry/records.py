"""Records that the registry hands out: frozen, detached from the database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from mooring.policy import DeploymentPolicy
from mooring.slo import SLOClass

__all__ = [
    "CheckpointDescription",
    "DeploymentRecord",
    "EventRecord",
    "KeyRecord",
    "ModelRecord",
    "NewEvent",
    "NewVersion",
    "SLOClassRecord",
    "TenantRecord",
    "VariantRecord",
    "VersionRecord",
]


class CheckpointDescription(Protocol):
    """An engine's description of a checkpoint, such as
    ``engines.checkpoint.model_config.CheckpointDescription``."""

    @property
    def architecture(self) -> str: ...
    @property
    def num_parameters(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def max_model_len(self) -> int: ...
    @property
    def checkpoint_dtype(self) -> str: ...
    @property
    def default_precision(self) -> str: ...
    @property
    def eos_token_ids(self) -> tuple[int, ...]: ...
    @property
    def config(self) -> Mapping[str, Any]: ...
    @property
    def generation_config(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True, slots=True)
class NewVersion:
    """A version to register.

    Attributes:
        digest: digest of the artifact in the store (``ArtifactStore.get`` gives its folder).
        num_bytes: size of the artifact.
        source: the source that the version was registered from, as given.
        architecture: the engine's word for the model's architecture.
        description: the rest of the engine's description, as JSON values.
        license: an SPDX-like word, if the source names one.
    """

    digest: str
    num_bytes: int
    source: str
    architecture: str
    description: Mapping[str, Any]
    license: str | None = None


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """A registered name and the numbers of its versions, oldest first."""

    name: str
    version_numbers: tuple[int, ...]
    created_at_s: float


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """A registered version; fields as in ``NewVersion``. ``number`` counts from 1 for each model, and no
    number is given twice."""

    model: str
    number: int
    digest: str
    source: str
    license: str | None
    architecture: str
    description: Mapping[str, Any]
    num_bytes: int
    created_at_s: float


@dataclass(frozen=True, slots=True)
class VariantRecord:
    """One precision of a version; ``packed_key`` and ``packed_bytes`` are None until the variant is
    packed."""

    id: int
    version: VersionRecord
    precision: str
    packed_key: str | None
    packed_bytes: int | None


@dataclass(frozen=True, slots=True)
class DeploymentRecord:
    """A deployment; clients name the model by the deployment's name."""

    name: str
    variant: VariantRecord
    engine: str
    policy: DeploymentPolicy
    created_at_s: float
    updated_at_s: float


@dataclass(frozen=True, slots=True)
class SLOClassRecord:
    """An SLO class, and the names of the tenants that have it, in order."""

    slo_class: SLOClass
    tenants: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TenantRecord:
    """A party that is served.

    Attributes:
        slo_class: what its requests are promised; None if they are served as best can be.
        weight: its share of a device among tenants of one priority, relative to theirs.
        allowed_slo_classes: classes that a request of it may name beside its own, by name.
    """

    id: int
    name: str
    created_at_s: float
    slo_class: SLOClass | None = None
    weight: float = 1.0
    allowed_slo_classes: tuple[SLOClass, ...] = ()


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """An API key as it may be shown: its first 8 characters and never the rest."""

    id: int
    tenant: str
    name: str
    prefix: str
    created_at_s: float
    revoked_at_s: float | None


@dataclass(frozen=True, slots=True)
class NewEvent:
    """A decision of the memory manager, to be kept.

    Attributes:
        at_s: time of the decision, in seconds of the Unix epoch.
        kind: one of ``memory_manager.fleet.events.EventKind``.
        deployment: the deployment that the decision is about; None if it is about none.
        replica_id: the replica that it is about, or None.
        worker_id: the worker that it is about, or None.
        device: the device that it is about, or None.
        reason: why, as a sentence.
        figures: the numbers behind the reason, as JSON values.
        detail: who goes and who comes by it, by which scores, as JSON values; empty if it is about no residency.
    """

    at_s: float
    kind: str
    deployment: str | None
    replica_id: str | None
    worker_id: str | None
    device: str | None
    reason: str
    figures: Mapping[str, Any]
    detail: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class EventRecord(NewEvent):
    """An event that is kept; ids grow from event to event."""

    id: int
