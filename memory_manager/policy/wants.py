"""Which deployments want one more replica: for requests that wait, for load, to be kept resident, or for
requests that are expected."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from memory_manager.config import PlannerConfig
from memory_manager.policy.arrivals import wake_at_s
from memory_manager.policy.eviction import in_priority, worth_s
from memory_manager.policy.plan_types import DeploymentView, ReplicaView
from memory_manager.policy.residency import ON_DEVICE, Residency

__all__ = [
    "Displaces",
    "Want",
    "is_at_rest",
    "is_parked",
    "must_be_forgotten",
    "num_kept",
    "surplus",
    "wants_of",
]

_TRYABLE = (Residency.WARM, Residency.COLD, Residency.FAILED)


class Displaces(enum.Enum):
    """Which replicas a want may ask to make room."""

    NOBODY = enum.auto()
    WORTH_LESS = enum.auto()  # idle replicas that together are worth clearly less
    ANYBODY = enum.auto()  # by the rules of ``memory_manager.policy.eviction``


@dataclass(frozen=True, slots=True)
class Want:
    """A deployment that wants one more replica.

    Attributes:
        replica: the one to bring.
        since_s: when the oldest of the waiting requests arrived; if none waits, since when the replica is
            wanted.
        deadline_s: deadline of the waiting requests; if none waits, when requests are expected, or ``inf``.
        worth_s: seconds that having the replica is expected to save; counts if it displaces only what is
            worth less.
        reason: why the replica comes.
    """

    deployment: DeploymentView
    replica: ReplicaView
    since_s: float
    deadline_s: float
    priority: int
    displaces: Displaces
    worth_s: float
    reason: str

    @property
    def order(self) -> tuple[bool, int, float, str]:
        """Sort key. A want that no request waits for comes last: it must not take the room that was made for
        demand."""
        forced = self.displaces is Displaces.ANYBODY
        return (not forced, -self.priority, self.deadline_s, self.deployment.name)


def is_at_rest(replica: ReplicaView) -> bool:
    """Whether the replica is off its device, with nothing under way."""
    return replica.residency in _TRYABLE and not replica.in_flight


def is_parked(replica: ReplicaView) -> bool:
    """Whether requests wait for the replica itself: they are parked on it while it sleeps."""
    return bool(replica.num_active) and replica.residency is Residency.WARM and is_at_rest(replica)


def must_be_forgotten(replica: ReplicaView) -> bool:
    """Whether the worker must forget the replica: it is retired and sleeps there, or it failed and its worker
    could not clean up."""
    over = replica.retired or replica.residency is Residency.FAILED
    return over and replica.worker_id is not None and is_at_rest(replica)


def num_kept(deployment: DeploymentView) -> int:
    """Replicas that stay resident whether requests come or not."""
    return 0 if deployment.held else max(deployment.policy.min_replicas, int(deployment.policy.pinned))


def surplus(deployment: DeploymentView, replicas: Sequence[ReplicaView]) -> list[ReplicaView]:
    """Replicas beyond the number that the load asks for: draining ones first, then those with the fewest
    requests. The last replica is never surplus: if it idles, timeouts and demand decide."""
    up = [each for each in replicas if each.residency in ON_DEVICE]
    num_surplus = len(up) - max(1, num_kept(deployment), deployment.wanted_replicas)
    can_go = [each for each in up if each.residency in (Residency.RESIDENT, Residency.DRAINING)]
    can_go.sort(key=lambda each: (each.residency is Residency.RESIDENT, each.num_active, each.replica_id))
    return can_go[: max(0, num_surplus)]


def wants_of(
    deployment: DeploymentView,
    replicas: Sequence[ReplicaView],
    leaving: set[str],
    at: Callable[[float], bool],
    now_s: float,
    config: PlannerConfig,
) -> Iterator[Want]:
    """Yields a want for each replica that a deployment wants brought now.

    Args:
        replicas: the deployment's own, not retired.
        leaving: ids of replicas that leave their device or their worker.
        at: tells whether a time has come; if not, the plan is made again then.
    """
    # A replica that leaves is neither up nor to be brought: it sleeps first and then waits for its turn.
    num_up = sum(each.residency in ON_DEVICE for each in replicas if each.replica_id not in leaving)
    demand = deployment.demand
    num_desired = max(num_kept(deployment), int(demand is not None))
    if num_up:
        num_desired = max(num_desired, deployment.wanted_replicas)
        at(deployment.rescale_at_s)
    candidates = [each for each in replicas if is_at_rest(each) and each.replica_id not in leaving]
    candidates.sort(
        key=lambda each: (
            not is_parked(each),
            _TRYABLE.index(each.residency),
            each.worker_id is None,
            each.replica_id,
        )
    )
    num_desired = max(num_desired, num_up + sum(map(is_parked, candidates)))
    if not num_desired and not num_up and candidates:
        yield from _expected(deployment, candidates[0], at, now_s, config)
    for replica in candidates[: max(0, min(deployment.policy.max_replicas, num_desired) - num_up)]:
        if at(replica.retry_at_s):
            num_requests = sum(each.num_active for each in replicas)
            yield _wanted(deployment, replica, num_up, num_requests, config)
            num_up += 1


def _wanted(
    deployment: DeploymentView, replica: ReplicaView, num_up: int, num_requests: int, config: PlannerConfig
) -> Want:
    demand = deployment.demand
    if demand is not None and (num_up == 0 or is_parked(replica)):
        since_s = demand.oldest_arrival_s
        deadline_s = min(demand.nearest_deadline_s, since_s + config.patience_s)
        priority = max(deployment.policy.priority, demand.priority)
        reason = f"{demand.num_waiting} waiting"
        return Want(deployment, replica, since_s, deadline_s, priority, Displaces.ANYBODY, 0.0, reason)
    displaces, reason, saved_s = Displaces.NOBODY, "kept resident", 0.0
    if deployment.policy.pinned and num_up == 0:
        displaces = Displaces.ANYBODY
    elif num_up >= num_kept(deployment):
        displaces = Displaces.WORTH_LESS
        num_over = max(1, num_requests - num_up * config.requests_per_replica)
        reason = f"{num_over} requests more than {num_up} replicas serve well"
        saved_s = num_over * config.scale_up_after_s  # each of these requests has waited so long at least
    return Want(
        deployment,
        replica,
        deployment.wanted_since_s,
        math.inf,
        deployment.policy.priority,
        displaces,
        in_priority(saved_s, deployment.policy.priority),
        reason,
    )


def _expected(
    deployment: DeploymentView,
    replica: ReplicaView,
    at: Callable[[float], bool],
    now_s: float,
    config: PlannerConfig,
) -> Iterator[Want]:
    """Wants a warm replica woken a little before its next request is likely to come."""
    window = deployment.next_arrival
    if window is None or deployment.held or replica.residency is not Residency.WARM:
        return
    if at(wake_at_s(window, deployment.reload_s, config)) and at(replica.retry_at_s):
        yield Want(
            deployment,
            replica,
            now_s,
            window.earliest_s,
            deployment.policy.priority,
            Displaces.WORTH_LESS,
            worth_s(deployment, config.expected_chance),
            f"requests are expected in {window.earliest_s - now_s:.1f} to {window.latest_s - now_s:.1f} s",
        )
