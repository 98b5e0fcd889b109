"""The memory manager as it shows itself: frozen values for status pages, metrics and tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from memory_manager.policy.device_queue import QueuePolicy
from memory_manager.policy.residency import Residency
from memory_manager.policy.step_model import StepCosts
from memory_manager.policy.wait_reason import WaitReason
from memory_manager.stats import ReplicaStats, WorkerStats

__all__ = [
    "DeploymentStatus",
    "DeviceQueueStatus",
    "DeviceStatus",
    "QueueShare",
    "ReplicaStatus",
    "Snapshot",
    "WaitingStatus",
    "WorkerStatus",
]


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
        sampled_at_s: when that was, on the manager's clock; None before the first one.
    """

    worker_id: str
    device: str
    kv_lease_bytes: int
    stats: WorkerStats
    sampled_at_s: float | None = None


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
    acquires wait. ``load_s``, ``wake_s`` and ``step_costs`` are running estimates, None before the first
    measurement."""

    name: str
    enabled: bool
    residency: Residency
    reason: str
    num_waiting: int
    load_s: float | None
    wake_s: float | None
    step_costs: StepCosts | None
    replicas: tuple[ReplicaStatus, ...]


@dataclass(frozen=True, slots=True)
class WaitingStatus:
    """One request that waits.

    Attributes:
        deployment: name of the model that it is for.
        waited_s: seconds since it came.
        due_in_s: seconds until its first token is due, below 0 once that is past; None if it never is.
        predicted_in_s: seconds until its first token, as predicted when it came, below 0 once that is past; None if
            nobody could tell.
        is_late: whether it can no longer begin in time.
        reason: the first thing that it waits for.
    """

    deployment: str
    tenant: str
    priority: int
    waited_s: float
    due_in_s: float | None
    predicted_in_s: float | None
    is_late: bool
    reason: WaitReason


@dataclass(frozen=True, slots=True)
class QueueShare:
    """The requests in a queue that one tenant has, of one priority, for one deployment.

    Attributes:
        num_in_time: those that can still begin in time.
        num_late: the others.
        oldest_s: seconds that the first of them has waited.
    """

    deployment: str
    tenant: str
    priority: int
    num_in_time: int = 0
    num_late: int = 0
    oldest_s: float = 0.0

    def with_one_more(self, waited_s: float, *, is_late: bool) -> QueueShare:
        """The share with a request that has waited so long."""
        return replace(
            self,
            num_in_time=self.num_in_time + (not is_late),
            num_late=self.num_late + is_late,
            oldest_s=max(self.oldest_s, waited_s),
        )


@dataclass(frozen=True, slots=True)
class DeviceQueueStatus:
    """The queue of one device.

    Attributes:
        policy: the order in which it is served.
        shares: who waits, by deployment, tenant and priority.
        first: those that are served first, in order; at most as many as are told one by one.
        predicted_s: seconds until all that are in time have their first token, as predicted; None if that of none is.
        jain_index: how evenly the device has served the tenants that wait or are served now, each by its weight: 1 if
            all had the same, 1 / N if one of N had all.
    """

    device: str
    policy: QueuePolicy
    shares: tuple[QueueShare, ...]
    first: tuple[WaitingStatus, ...]
    predicted_s: float | None
    jain_index: float

    @property
    def num_in_time(self) -> int:
        """Requests that can still begin in time."""
        return sum(each.num_in_time for each in self.shares)

    @property
    def num_late(self) -> int:
        """Requests that cannot."""
        return sum(each.num_late for each in self.shares)

    @property
    def oldest_s(self) -> float:
        """Seconds that the first of all has waited; 0 if nobody waits."""
        return max((each.oldest_s for each in self.shares), default=0.0)


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
    queues: tuple[DeviceQueueStatus, ...]
