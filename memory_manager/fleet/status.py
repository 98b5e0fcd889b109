"""What the memory manager shows of itself: frozen values for status pages, metrics and tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from memory_manager.policy.residency import Residency
from memory_manager.ports import KVCacheFigures, KVFragmentation

__all__ = ["DeploymentStatus", "DeviceStatus", "ReplicaStatus", "Snapshot", "WorkerStatus"]


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """One device. ``owners``: bytes leased, by ``"reserve"``, ``"weights:<replica>"``, ``"kv:<worker>"``."""

    name: str
    budget_bytes: int
    owners: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker that takes orders. ``kv_lease_bytes`` is the ledger's figure; ``kv_bytes``, ``ready_bytes`` (of
    memory that it keeps for nobody yet) and ``fragmentation`` are the worker's own at the last poll."""

    worker_id: str
    device: str
    kv_lease_bytes: int
    kv_bytes: int
    ready_bytes: int = 0
    fragmentation: KVFragmentation = field(default_factory=KVFragmentation)


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """One replica. ``weights_bytes`` is the ledger's lease, ``kv_bytes`` the worker's own figure at the last
    poll, ``num_active`` requests between acquire and release, ``num_queued`` of these without a place in a batch
    at the last poll, ``preemptions_total`` and ``cache`` the worker's, ``since_s`` when its residency began and
    ``last_used_s`` when a request last came or went, on the manager's clock."""

    replica_id: str
    worker_id: str | None
    residency: Residency
    reason: str
    weights_bytes: int
    kv_bytes: int
    num_active: int
    num_queued: int
    preemptions_total: int
    since_s: float
    last_used_s: float
    cache: KVCacheFigures = field(default_factory=KVCacheFigures)


@dataclass(frozen=True, slots=True)
class DeploymentStatus:
    """One deployment. ``residency`` is its best replica's, ``reason`` why that is so; ``num_waiting``
    acquires wait. ``load_s`` and ``wake_s`` are running estimates, None before the first measurement."""

    name: str
    enabled: bool
    residency: Residency
    reason: str
    num_waiting: int
    load_s: float | None
    wake_s: float | None
    replicas: tuple[ReplicaStatus, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole state.

    Attributes:
        at_s: on the manager's clock.
        num_ledger_mismatches: polls at which a worker held other bytes than the ledger says; anything but 0 is
            a bug of ours.
    """

    at_s: float
    devices: tuple[DeviceStatus, ...]
    workers: tuple[WorkerStatus, ...]
    deployments: tuple[DeploymentStatus, ...]
    num_ledger_mismatches: int
