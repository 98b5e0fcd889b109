"""What the planner reads and what it answers: plain frozen values, no I/O, no clock."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from memory_manager.policy.arrivals import ArrivalWindow
from memory_manager.policy.residency import Residency

__all__ = [
    "Action",
    "DemandView",
    "DeploymentView",
    "DeviceView",
    "Drain",
    "Figures",
    "Load",
    "Plan",
    "PlannerState",
    "ReplicaView",
    "Resume",
    "SetKVLease",
    "Sleep",
    "Unload",
    "Wake",
    "WorkerView",
]


@dataclass(frozen=True, slots=True)
class DemandView:
    """Requests that wait for a deployment.

    Attributes:
        oldest_arrival_s, nearest_deadline_s: on the manager's clock; the deadline may be ``inf``.
        priority: the highest among them.
    """

    num_waiting: int
    oldest_arrival_s: float
    nearest_deadline_s: float
    priority: int


@dataclass(frozen=True, slots=True)
class DeploymentView:
    """A deployment's policy and what is known of its traffic.

    Attributes:
        weights_bytes, kv_guarantee_bytes: of one replica, whole pages.
        held: an operator put it to sleep; pins and ``min_replicas`` do not wake it.
        wanted_since_s: when its present policy was set.
        demand: None where nobody waits.
        request_rate_per_s: exponentially decayed.
        reload_s: what waking it again is expected to take.
        next_arrival: when its rhythm lets expect a request; None where it has none, or where nothing is woken
            ahead of time.
        wanted_replicas: that its load asks for, once it has one.
        rescale_at_s: when that number changes if the load stays as it is.
    """

    name: str
    weights_bytes: int
    kv_guarantee_bytes: int
    enabled: bool = True
    pinned: bool = False
    priority: int = 0
    idle_timeout_s: float | None = None
    min_replicas: int = 0
    max_replicas: int = 1
    held: bool = False
    wanted_since_s: float = 0.0
    demand: DemandView | None = None
    request_rate_per_s: float = 0.0
    reload_s: float = 1.0
    next_arrival: ArrivalWindow | None = None
    wanted_replicas: int = 1
    rescale_at_s: float = math.inf


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """One replica.

    Attributes:
        worker_id: of the worker that knows it: where it is, or where it sleeps.
        lease_bytes: what the ledger promises its weights now, whatever its residency.
        num_active: requests between acquire and release.
        in_flight: the worker is carrying out a load, wake, sleep or unload of it.
        retired: to be unloaded and forgotten (its deployment was removed or got another artifact).
        sleep_requested: by an operator.
        since_s: when its residency began.
        last_used_s: when the last request came or went.
        retry_at_s: nothing is tried on it before.
    """

    replica_id: str
    deployment: str
    residency: Residency
    weights_bytes: int
    kv_guarantee_bytes: int
    worker_id: str | None = None
    lease_bytes: int = 0
    num_active: int = 0
    in_flight: bool = False
    retired: bool = False
    sleep_requested: bool = False
    since_s: float = 0.0
    last_used_s: float = 0.0
    retry_at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One worker.

    Attributes:
        kv_lease_bytes: what the ledger promises it.
        kv_target_bytes: what it was last told to keep to; the lease is the larger until the worker has obeyed.
        kv_wanted_bytes: the lease under which no sequence would wait for KV; 0 where none does.
        kv_wanted_since_s: since when some do.
    """

    worker_id: str
    device: str
    kv_lease_bytes: int = 0
    kv_target_bytes: int = 0
    kv_wanted_bytes: int = 0
    kv_wanted_since_s: float = 0.0


@dataclass(frozen=True, slots=True)
class DeviceView:
    """One device. ``fixed_bytes`` is what the planner cannot move: the reserve. ``others_bytes`` is what other
    processes claim of the budget now: replicas make room for it, and nothing is refused for good because of it."""

    name: str
    budget_bytes: int
    fixed_bytes: int = 0
    others_bytes: int = 0


@dataclass(frozen=True, slots=True)
class PlannerState:
    """Everything that a plan follows from, beside the time and the policy. ``next_due_s``: when time alone will
    stir a deployment that was left out."""

    devices: tuple[DeviceView, ...]
    workers: tuple[WorkerView, ...]
    deployments: tuple[DeploymentView, ...]
    replicas: tuple[ReplicaView, ...]
    next_due_s: float = math.inf


Figures = Mapping[str, int | float | str]
"""What an action follows from: numbers by name, units in the names; words where a number says nothing."""


@dataclass(frozen=True, slots=True)
class Load:
    """Bring a replica that no worker knows to one."""

    replica_id: str
    worker_id: str
    reason: str
    figures: Figures = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Wake:
    """Bring back a replica that sleeps in its worker."""

    replica_id: str
    reason: str
    figures: Figures = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Drain:
    """Admit no new requests to a resident replica. ``room_for``: the deployment that it makes room for, empty
    where it goes for its own sake."""

    replica_id: str
    reason: str
    figures: Figures = field(default_factory=dict, hash=False)
    room_for: str = ""


@dataclass(frozen=True, slots=True)
class Resume:
    """Admit requests again: what a draining replica was to make room for is no longer wanted."""

    replica_id: str
    reason: str = "may stay after all"


@dataclass(frozen=True, slots=True)
class Sleep:
    """Take a replica without requests off its device. ``room_for``: as of ``Drain``."""

    replica_id: str
    reason: str
    figures: Figures = field(default_factory=dict, hash=False)
    room_for: str = ""


@dataclass(frozen=True, slots=True)
class Unload:
    """Make the worker forget a replica without requests."""

    replica_id: str
    reason: str
    figures: Figures = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class SetKVLease:
    """Tell a worker how many bytes of KV it may keep."""

    worker_id: str
    num_bytes: int


Action = Load | Wake | Drain | Resume | Sleep | Unload | SetKVLease


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now.

    Attributes:
        actions: all may begin at once; what must wait for one of them comes in a later plan.
        refusals: deployments that can never fit, with the message for whoever waits.
        next_at_s: when time alone will change the plan; ``inf`` for never.
    """

    actions: tuple[Action, ...]
    refusals: Mapping[str, str]
    next_at_s: float
