"""The memory manager as it shows itself: frozen values for status pages, metrics and tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from memory_manager.policy.residency import Residency
from memory_manager.stats import ReplicaStats, WorkerStats

__all__ = ["DeploymentStatus", "DeviceStatus", "ReplicaStatus", "Snapshot", "WorkerStatus"]


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """One device. ``owners``: bytes leased, by ``"reserve"``, ``"weights:<replica>"``, ``"kv:<worker>"``."""

    name: str
    budget_bytes: int
    owners: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker that takes orders.

    Attributes:
        kv_lease_bytes: its KV lease, by the ledger.
        stats: its own figures at the last poll.
    """

    worker_id: str
    device: str
    kv_lease_bytes: int
    stats: WorkerStats


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """One replica.

    Attributes:
        reason: why it has its residency.
        worker_id: the worker that takes its requests; None if no worker knows it.
        lease_bytes: lease for its weights on each of its workers, by the ledger.
        num_active: requests that have a ticket for it.
        for_s: seconds since its residency began.
        stats: its worker's figures at the last poll.
    """

    replica_id: str
    worker_id: str | None
    residency: Residency
    reason: str
    lease_bytes: int
    num_active: int
    for_s: float
    stats: ReplicaStats

    @property
    def num_queued(self) -> int:
        """Active requests without a place in a batch; those that ended since the last poll are not among them."""
        return min(self.stats.num_queued, self.num_active)


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
