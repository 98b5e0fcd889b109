"""Which replicas make room, and from when on each may be asked to."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from memory_manager.config import PlannerConfig
from memory_manager.policy.arrivals import BURST_GAP_S
from memory_manager.policy.plan_types import DeploymentView, ReplicaView
from memory_manager.policy.residency import ON_DEVICE, Residency

__all__ = [
    "Candidate",
    "choose",
    "footprint_bytes",
    "in_priority",
    "judge",
    "reuse_chance",
    "value_per_byte",
    "worth_s",
]

_MAX_PRIORITY_DOUBLINGS = 32


@dataclass(frozen=True, slots=True)
class Candidate:
    """A replica that might make room.

    Attributes:
        rank: 0 if the replica was draining, 1 if it is idle, 2 if it is in use.
        value_per_byte: seconds that its absence is expected to cost, per byte of its footprint.
        eligible_at_s: from when on it may be asked to go; not later than now if it may already.
    """

    replica: ReplicaView
    rank: int
    value_per_byte: float
    eligible_at_s: float

    @property
    def value_s(self) -> float:
        """Seconds that the replica's absence is expected to cost."""
        return self.value_per_byte * footprint_bytes(self.replica)

    @property
    def order(self) -> tuple[int, float, float, str]:
        """Sort key: the cheapest first; among equals the replica that has been resident longest."""
        return (self.rank, self.value_per_byte, self.replica.since_s, self.replica.replica_id)


def footprint_bytes(replica: ReplicaView) -> int:
    """Bytes that a replica alone takes of its device: its lease, and its own KV guarantee while it is there. What is
    kept for all models of its worker together is nobody's."""
    guarantee_bytes = replica.kv_guarantee_bytes if replica.residency in ON_DEVICE else 0
    return replica.lease_bytes + guarantee_bytes


def reuse_chance(
    replica: ReplicaView, deployment: DeploymentView, now_s: float, config: PlannerConfig
) -> float:
    """The chance of a request within ``reuse_horizon_s``: arrivals are taken as Poisson, unless they have a
    rhythm."""
    chance = -math.expm1(-deployment.request_rate_per_s * config.reuse_horizon_s)
    window = deployment.next_arrival
    if window is None or now_s - replica.last_used_s < BURST_GAP_S:  # in the middle of a burst
        return chance
    if window.earliest_s <= now_s + config.reuse_horizon_s:
        return max(chance, config.expected_chance)
    return min(chance, config.unexpected_chance)


def in_priority(seconds: float, priority: int) -> float:
    """Weighs seconds by a priority: they count double with each step up."""
    doublings = max(-_MAX_PRIORITY_DOUBLINGS, min(_MAX_PRIORITY_DOUBLINGS, priority))
    return float(seconds * 2.0**doublings)


def worth_s(deployment: DeploymentView, chance: float) -> float:
    """Seconds that having a deployment resident is expected to save: the chance of use times the time to
    reload."""
    return in_priority(chance * deployment.reload_s, deployment.policy.priority)


def value_per_byte(
    replica: ReplicaView, deployment: DeploymentView, now_s: float, config: PlannerConfig
) -> float:
    """Seconds that a replica's presence is worth, per byte of its footprint."""
    chance = reuse_chance(replica, deployment, now_s, config)
    return worth_s(deployment, chance) / max(1, footprint_bytes(replica))


def judge(
    replica: ReplicaView,
    deployment: DeploymentView,
    *,
    demand_since_s: float,
    demand_priority: int,
    now_s: float,
    config: PlannerConfig,
) -> Candidate | None:
    """The replica as a candidate for making room, or None if it never is one for this demand.

    A pinned replica never is; a replica in use never is for demand of lower priority.
    """
    if replica.in_flight or replica.residency not in (Residency.RESIDENT, Residency.DRAINING):
        return None
    if deployment.policy.pinned and not deployment.held:
        return None
    value = value_per_byte(replica, deployment, now_s, config)
    if replica.residency is Residency.DRAINING:
        return Candidate(replica, 0, value, replica.retry_at_s)
    settled_s = replica.since_s + config.min_residency_s
    if replica.num_active == 0:
        eligible_at_s = min(replica.last_used_s + config.idle_grace_s, settled_s)
        return Candidate(replica, 1, value, max(eligible_at_s, replica.retry_at_s))
    if deployment.policy.priority > demand_priority:
        return None
    eligible_at_s = max(settled_s, demand_since_s + config.drain_after_s, replica.retry_at_s)
    return Candidate(replica, 2, value, eligible_at_s)


def choose(
    candidates: Sequence[Candidate], shortage_bytes: Callable[[Sequence[ReplicaView]], int]
) -> tuple[Candidate, ...] | None:
    """The cheapest candidates that free enough, none of them needlessly; None if all candidates together do not.

    Args:
        shortage_bytes: what is still missing if these replicas leave, 0 or less if nothing is; the more leave, the
            less is missing.
    """
    chosen: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda each: each.order):
        if shortage_bytes(_replicas(chosen)) <= 0:
            break
        chosen.append(candidate)
    if shortage_bytes(_replicas(chosen)) > 0:
        return None
    for candidate in reversed(chosen.copy()):
        # A large candidate chosen late may have made earlier or equally dear ones needless.
        others = [each for each in chosen if each is not candidate]
        if shortage_bytes(_replicas(others)) <= 0:
            chosen = others
    return tuple(chosen)


def _replicas(candidates: Sequence[Candidate]) -> list[ReplicaView]:
    return [each.replica for each in candidates]
