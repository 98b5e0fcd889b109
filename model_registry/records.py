"""What the registry hands out: frozen records, detached from the database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = [
    "CheckpointDescription",
    "DeploymentPolicy",
    "DeploymentRecord",
    "EventRecord",
    "KeyRecord",
    "ModelRecord",
    "NewEvent",
    "NewVersion",
    "TenantRecord",
    "VariantRecord",
    "VersionRecord",
]


class CheckpointDescription(Protocol):
    """What an engine says of a checkpoint (``engines.checkpoint.model_config.CheckpointDescription`` is one)."""

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
        digest, num_bytes: of the artifact in the store (``ArtifactStore.get`` gives its folder).
        source: where it came from, as given.
        architecture: of the model, in the engine's word.
        description: the rest of what the engine says of it, as JSON values.
        license: an SPDX-like word, where the source names one.
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
    """A registered version; fields as in ``NewVersion``. ``number`` counts from 1 for each model and is
    never given twice."""

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
    """One precision of a version; ``packed_key`` and ``packed_bytes`` are None until it is packed."""

    id: int
    version: VersionRecord
    precision: str
    packed_key: str | None
    packed_bytes: int | None


@dataclass(frozen=True, slots=True)
class DeploymentPolicy:
    """How a deployment is treated.

    Attributes:
        enabled: it may be woken and serve; a disabled one refuses requests.
        pinned: once resident it is never put to sleep for another's sake.
        priority: higher is served first and evicted later.
        kv_guarantee_bytes: floor of KV while resident, at least what one longest request needs.
        kv_cap_bytes: most KV it may hold; None is no cap.
        max_model_len: longest prompt plus output in tokens; None is the model's own.
        idle_timeout_s: seconds without a request after which it sleeps; None is never.
        min_replicas: replicas kept loaded without any demand.
        max_replicas: replicas that demand may add up to.
        prefix_cache: who shares computed prefixes: requests of one ``tenant``, all (``shared``), or none (``off``).
    """

    enabled: bool = True
    pinned: bool = False
    priority: int = 0
    kv_guarantee_bytes: int | None = None
    kv_cap_bytes: int | None = None
    max_model_len: int | None = None
    idle_timeout_s: float | None = None
    min_replicas: int = 0
    max_replicas: int = 1
    prefix_cache: str = "tenant"


@dataclass(frozen=True, slots=True)
class DeploymentRecord:
    """A deployment; its name is what clients call the model."""

    name: str
    variant: VariantRecord
    engine: str
    policy: DeploymentPolicy
    created_at_s: float
    updated_at_s: float


@dataclass(frozen=True, slots=True)
class TenantRecord:
    """Who is served."""

    id: int
    name: str
    created_at_s: float


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
        at_s: of the Unix epoch.
        kind: one of ``memory_manager.fleet.events.EventKind``.
        deployment, replica_id, worker_id, device: what it is about; None where it is about none.
        reason: why, as a sentence.
        figures: the numbers behind the reason, as JSON values.
    """

    at_s: float
    kind: str
    deployment: str | None
    replica_id: str | None
    worker_id: str | None
    device: str | None
    reason: str
    figures: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class EventRecord(NewEvent):
    """An event that is kept; ``id`` grows with every one."""

    id: int
