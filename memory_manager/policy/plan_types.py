"""Values that the planner reads and answers with: plain and frozen, no I/O, no clock.

Those of which a plan needs hundreds are tuples: a frozen dataclass takes several times as long to make.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from memory_manager.policy.arrivals import ArrivalWindow
from memory_manager.policy.chooser import Exchange
from memory_manager.policy.residency import Residency
from mooring.policy import DeploymentPolicy

__all__ = [
    "Action",
    "CopyView",
    "DemandView",
    "DeploymentView",
    "DeviceView",
    "Drain",
    "DropCopy",
    "Figures",
    "HostView",
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


class DemandView(NamedTuple):
    """Requests that wait for a deployment, those included that are parked on a replica of it.

    Attributes:
        oldest_arrival_s: when the first of them arrived or was parked, on the manager's clock; or the first that gave
            up since the deployment was last there.
        priority: the highest priority among them.
        latest_s: of each, the latest moment at which it has to be computed to meet its targets, on the same clock.
    """

    num_waiting: int
    oldest_arrival_s: float
    priority: int
    latest_s: tuple[float, ...] = ()


class DeploymentView(NamedTuple):
    """A deployment's policy and what is known of its traffic.

    Attributes:
        policy: as the administrator set it.
        weights_bytes: whole pages of one replica's weights.
        kv_guarantee_bytes: whole pages of KV that are one replica's alone.
        kv_longest_bytes: whole pages of KV that one sequence of full length needs.
        held: an operator put the deployment to sleep; its policy does not wake it.
        wanted_since_s: when the present policy was set.
        demand: the requests that wait; None if none does.
        request_rate_per_s: exponentially decayed.
        reload_s: seconds that bringing the deployment to a device, or back there if it leaves, is expected to take:
            those of a wake, or of a load if no copy of its weights is, or would be, in host memory.
        first_token_s: seconds that a request takes to its first token once the deployment is there.
        longest_pause_s: the longest of the last pauses between its bursts of requests.
        exchange: what decided that others made room for it; None if none did, or if it has come since.
        next_arrival: when requests are expected by the deployment's rhythm; None if it has no rhythm, or if
            nothing is woken ahead of time.
        wanted_replicas: number of replicas that the load asks for, once there is one.
        rescale_at_s: when that number changes if the load stays as it is.
        engine: that runs it; any does, if it is empty.
    """

    name: str
    weights_bytes: int
    kv_guarantee_bytes: int
    policy: DeploymentPolicy = DeploymentPolicy()
    held: bool = False
    wanted_since_s: float = 0.0
    demand: DemandView | None = None
    request_rate_per_s: float = 0.0
    reload_s: float = 1.0
    first_token_s: float = 0.0
    longest_pause_s: float = 0.0
    exchange: Exchange | None = None
    next_arrival: ArrivalWindow | None = None
    wanted_replicas: int = 1
    rescale_at_s: float = math.inf
    kv_longest_bytes: int = 0
    engine: str = ""


class ReplicaView(NamedTuple):
    """One replica.

    Attributes:
        worker_id: the worker that knows the replica: where it is, or where it sleeps; of a group, the first.
        lease_bytes: bytes that the ledger of that worker promises the replica's weights now, whatever its residency.
        num_active: requests between acquire and release; they are parked while the replica sleeps.
        in_flight: whether the worker is carrying out a load, wake, sleep or unload of the replica, or drops its copy.
        is_leaving: whether that is a sleep or unload.
        retired: whether the replica is to be unloaded and forgotten (its deployment was removed or got
            another artifact).
        sleep_requested: whether an operator asked that the replica sleep.
        since_s: when the present residency began.
        last_used_s: when the last request came or went.
        retry_at_s: nothing is tried on the replica before this time.
        can_sleep: whether it can leave its device for host memory; otherwise it is unloaded.
        kept_bytes: bytes of its lease that its worker kept when it last slept; 0 if it never did.
        is_guest: it came for late requests alone.
        latest_s: of each of its requests, the latest moment at which it has to be computed to meet its targets.
        artifact_key: names its weights; replicas with the same have one host copy.
        copy_bytes: bytes of host memory that a load by way of a host copy needs; 0 if somebody holds that copy, None
            if there can be none.
        kv_guarantee_bytes, kv_longest_bytes: as its deployment's, when it was made.
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
    is_leaving: bool = False
    retired: bool = False
    sleep_requested: bool = False
    since_s: float = 0.0
    last_used_s: float = 0.0
    retry_at_s: float = 0.0
    can_sleep: bool = True
    is_guest: bool = False
    latest_s: tuple[float, ...] = ()
    artifact_key: str = ""
    copy_bytes: int | None = 0
    kv_longest_bytes: int = 0
    kept_bytes: int = 0


@dataclass(frozen=True, slots=True)
class CopyView:
    """The hold of one replica on a copy of its weights in host memory.

    Attributes:
        may_go: whether the replica can do without it now: it sleeps, unasked for, and is cold then; or it is resident
            with weights of its own, and will be unloaded rather than sleep.
        is_going: whether the replica is giving it up.
        unused_since_s: when its model was last used; if it is resident, when it came.
    """

    replica_id: str
    artifact_key: str
    num_bytes: int
    may_go: bool
    is_going: bool
    unused_since_s: float


@dataclass(frozen=True, slots=True)
class HostView:
    """The host's memory for copies of weights.

    Attributes:
        free_bytes: bytes of the budget that nobody holds.
        copies: all that are held, if a load may want more than is free.
    """

    budget_bytes: int = 0
    free_bytes: int = 0
    copies: tuple[CopyView, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One worker.

    Attributes:
        kv_lease_bytes: KV bytes that the ledger promises the worker.
        kv_target_bytes: KV bytes that the worker was last told to keep to; the lease stays larger until the
            worker has obeyed.
        kv_wanted_bytes: the lease under which no sequence would wait for KV; 0 if none does.
        kv_wanted_since_s: since when sequences have waited for KV.
        kv_wanted_at_s: when they last did; the moment of the view if they do now, ``-inf`` if they never did.
        elastic_kv: its lease may change while replicas are there, which share it; without it each replica has KV of
            its own from its load on.
        leaves_by_s: the worker is to leave: it gets no replicas, and those on it are unloaded, at this time with
            requests that still run; None if it stays.
        engine: that it runs.
        serves: the one deployment that it is for; empty if it is for any.
    """

    worker_id: str
    device: str
    kv_lease_bytes: int = 0
    kv_target_bytes: int = 0
    kv_wanted_bytes: int = 0
    kv_wanted_since_s: float = 0.0
    kv_wanted_at_s: float = -math.inf
    elastic_kv: bool = True
    leaves_by_s: float | None = None
    engine: str = ""
    serves: str = ""

    def can_have(self, deployment: DeploymentView) -> bool:
        """Whether replicas of a deployment can be here."""
        return deployment.engine in ("", self.engine) and self.serves in ("", deployment.name)


@dataclass(frozen=True, slots=True)
class DeviceView:
    """One device.

    Attributes:
        fixed_bytes: bytes of the budget that the planner cannot move: the reserve.
        others_bytes: bytes of the budget that are left to other processes now. Replicas make room for them,
            and nothing is refused for good because of them.
    """

    name: str
    budget_bytes: int
    fixed_bytes: int = 0
    others_bytes: int = 0


@dataclass(frozen=True, slots=True)
class PlannerState:
    """Everything that a plan follows from, beside the time and the planner's configuration.

    Attributes:
        next_due_s: when time alone will give a deployment that was left out something to do.
    """

    devices: tuple[DeviceView, ...]
    workers: tuple[WorkerView, ...]
    deployments: tuple[DeploymentView, ...]
    replicas: tuple[ReplicaView, ...]
    next_due_s: float = math.inf
    host: HostView = field(default_factory=HostView)


Figures = Mapping[str, int | float | str]
"""Figures that an action follows from, by name, with units in the names; words if a number would say
nothing."""


@dataclass(frozen=True, slots=True)
class Load:
    """Bring a replica that no worker knows to a worker.

    Attributes:
        from_file: whether its weights come from the packed file or folder at once, without a copy in host memory.
        exchange: what made others leave for it; None if nothing did.
    """

    replica_id: str
    worker_id: str
    reason: str
    figures: Figures = field(default_factory=dict, hash=False)
    from_file: bool = False
    exchange: Exchange | None = None


@dataclass(frozen=True, slots=True)
class Wake:
    """Bring back a replica that sleeps in its worker. ``exchange``: see ``Load``."""

    replica_id: str
    reason: str
    figures: Figures = field(default_factory=dict, hash=False)
    exchange: Exchange | None = None


@dataclass(frozen=True, slots=True)
class Drain:
    """Admit nothing new to a resident replica, and let it finish those that it has. ``exchange``: see ``Sleep``."""

    replica_id: str
    reason: str
    figures: Figures = field(default_factory=dict, hash=False)
    exchange: Exchange | None = None


@dataclass(frozen=True, slots=True)
class Resume:
    """Admit requests again to a draining replica: it need not go any more."""

    replica_id: str
    reason: str = "may stay after all"


@dataclass(frozen=True, slots=True)
class Sleep:
    """Take a replica off its device; its requests are parked there.

    Attributes:
        room_for: the deployment that the replica makes room for; empty if it leaves for another reason.
        exchange: what decided that; None for another reason.
    """

    replica_id: str
    reason: str
    figures: Figures = field(default_factory=dict, hash=False)
    room_for: str = ""
    exchange: Exchange | None = None


@dataclass(frozen=True, slots=True)
class Unload:
    """Make the worker forget a replica; its requests go on elsewhere. ``room_for``, ``exchange``: see ``Sleep``."""

    replica_id: str
    reason: str
    figures: Figures = field(default_factory=dict, hash=False)
    room_for: str = ""
    exchange: Exchange | None = None


@dataclass(frozen=True, slots=True)
class DropCopy:
    """Make a replica give up its copy in host memory: one that sleeps is unloaded, one that is resident serves on.

    Attributes:
        wanted_bytes: bytes of host memory that are wanted.
    """

    replica_id: str
    reason: str
    wanted_bytes: int


@dataclass(frozen=True, slots=True)
class SetKVLease:
    """Tell a worker how many bytes of KV it may keep."""

    worker_id: str
    num_bytes: int


Action = Load | Wake | Drain | Resume | Sleep | Unload | DropCopy | SetKVLease


@dataclass(frozen=True, slots=True)
class Plan:
    """Actions and refusals for this moment.

    Attributes:
        actions: all of them may begin at once; an action that must wait for one of these comes in a later
            plan.
        refusals: deployments that can never fit, with the message for the requests that wait.
        next_at_s: when time alone will change the plan; ``inf`` for never.
        exchanges: deployments that others make room for, or have made room for, and what decided it.
    """

    actions: tuple[Action, ...]
    refusals: Mapping[str, str]
    next_at_s: float
    exchanges: Mapping[str, Exchange] = field(default_factory=dict)
