"""Which deployments want one more replica: for requests that wait, for load, to be kept resident, or for
requests that are expected."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from memory_manager.config import PlannerConfig
from memory_manager.policy import standings
from memory_manager.policy.arrivals import wake_at_s
from memory_manager.policy.plan_types import DeploymentView, ReplicaView
from memory_manager.policy.residency import ON_DEVICE, Residency
from memory_manager.policy.stakes import Standing, comes_before

__all__ = [
    "Displaces",
    "Want",
    "idle_timeout_s",
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
    UNUSED = enum.auto()  # replicas that stand unused
    WORTH_LESS = enum.auto()  # as the chooser weighs them
    ANYBODY = enum.auto()


class Want(NamedTuple):
    """A deployment that wants one more replica.

    Attributes:
        replica: the one to bring.
        since_s: when the oldest of the waiting requests arrived; if none waits, since when the replica is
            wanted.
        displaces: whom it may ask to make room.
        standing: as the chooser weighs it.
        reason: why the replica comes.
    """

    deployment: DeploymentView
    replica: ReplicaView
    since_s: float
    displaces: Displaces
    standing: Standing
    reason: str

    @property
    def order(self) -> tuple[bool, bool, bool, tuple[float, float, float, str]]:
        """Sort key. Whom others have made room for comes first, and a want that no request waits for last, unless it
        is pinned: it must not take the room that was made for demand."""
        is_pinned = self.displaces is Displaces.ANYBODY
        has_room = self.deployment.exchange is not None
        is_asked_for = len(self.standing.slacks_s) > 0
        return (not is_pinned, not has_room, not is_asked_for, comes_before(self.standing))


def is_at_rest(replica: ReplicaView) -> bool:
    """Whether the replica is off its device, with nothing under way."""
    return replica.residency in _TRYABLE and not replica.in_flight


def is_parked(replica: ReplicaView) -> bool:
    """Whether requests wait for the replica itself: they are parked on it while it sleeps."""
    sleeps = replica.residency is Residency.WARM and replica.worker_id is not None and not replica.in_flight
    return sleeps and replica.num_active > 0


def must_be_forgotten(replica: ReplicaView) -> bool:
    """Whether the worker must forget the replica: it is retired and sleeps there, or it failed and its worker
    could not clean up."""
    over = replica.retired or replica.residency is Residency.FAILED
    return over and replica.worker_id is not None and is_at_rest(replica)


def num_kept(deployment: DeploymentView) -> int:
    """Replicas that stay resident whether requests come or not."""
    return 0 if deployment.held else max(deployment.policy.min_replicas, int(deployment.policy.pinned))


def idle_timeout_s(deployment: DeploymentView, config: PlannerConfig) -> float | None:
    """Seconds without a request after which it sleeps; None for never by time alone."""
    own_s = deployment.policy.idle_timeout_s
    return config.idle_timeout_s if own_s is None else own_s


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
    num_up, candidates = 0, []
    for each in replicas:
        if each.replica_id not in leaving:
            if each.residency in ON_DEVICE:
                num_up += 1
            elif is_at_rest(each):
                candidates.append(each)
    num_desired = max(num_kept(deployment), int(deployment.demand is not None))
    if num_up:
        num_desired = max(num_desired, deployment.wanted_replicas)
        at(deployment.rescale_at_s)
    if not candidates:
        return
    if len(candidates) > 1:
        candidates.sort(
            key=lambda each: (
                not is_parked(each),
                _TRYABLE.index(each.residency),
                each.worker_id is None,
                each.replica_id,
            )
        )
    num_desired = max(num_desired, num_up + sum(map(is_parked, candidates)))
    if not num_desired and not num_up:
        yield from _expected(deployment, candidates[0], at, now_s, config)
    for replica in candidates[: max(0, min(deployment.policy.max_replicas, num_desired) - num_up)]:
        if at(replica.retry_at_s):
            yield _wanted(deployment, replica, replicas, num_up, now_s, config)
            num_up += 1


def _wanted(
    deployment: DeploymentView,
    replica: ReplicaView,
    replicas: Sequence[ReplicaView],
    num_up: int,
    now_s: float,
    config: PlannerConfig,
) -> Want:
    demand, priority = deployment.demand, deployment.policy.priority
    if demand is not None and (num_up == 0 or is_parked(replica)):
        standing = standings.of_wanted(
            replica,
            deployment,
            num_expected=0.0,
            priority=max(priority, demand.priority),
            now_s=now_s,
            config=config,
        )
        is_pinned = deployment.policy.pinned and num_up == 0
        displaces = Displaces.ANYBODY if is_pinned else Displaces.WORTH_LESS
        reason = f"{demand.num_waiting} waiting"
        return Want(deployment, replica, demand.oldest_arrival_s, displaces, standing, reason)
    displaces, reason = Displaces.NOBODY, "kept resident"
    if deployment.policy.pinned and num_up == 0:
        displaces = Displaces.ANYBODY
    elif num_up >= num_kept(deployment):
        displaces = Displaces.UNUSED
        num_requests = sum(each.num_active for each in replicas)
        num_over = max(1, num_requests - num_up * config.requests_per_replica)
        reason = f"{num_over} requests more than {num_up} replicas serve well"
    standing = standings.of_wanted(
        replica,
        deployment._replace(demand=None),
        num_expected=0.0,
        priority=priority,
        now_s=now_s,
        config=config,
    )
    return Want(deployment, replica, deployment.wanted_since_s, displaces, standing, reason)


def _expected(
    deployment: DeploymentView,
    replica: ReplicaView,
    at: Callable[[float], bool],
    now_s: float,
    config: PlannerConfig,
) -> Iterator[Want]:
    """Wants a warm replica woken a little before its next request is likely to come, or in place of a guest if so
    many are to come that some would miss their targets."""
    if deployment.held or replica.residency is not Residency.WARM:
        return
    window = deployment.next_arrival
    is_near = window is not None and at(wake_at_s(window, deployment.reload_s, config))
    if not is_near and idle_timeout_s(deployment, config) is not None:
        return
    standing = standings.of_wanted(
        replica,
        deployment,
        num_expected=config.expected_chance if is_near else 0.0,
        priority=deployment.policy.priority,
        now_s=now_s,
        config=config,
    )
    if standing.is_wanted and at(replica.retry_at_s):
        reason = f"{standing.num_lost_soon:.3g} requests are expected to come too early for a wake"
        if window is not None and is_near:
            reason = (
                f"requests are expected in {window.earliest_s - now_s:.1f} to {window.latest_s - now_s:.1f} s"
            )
        yield Want(deployment, replica, now_s, Displaces.WORTH_LESS, standing, reason)
