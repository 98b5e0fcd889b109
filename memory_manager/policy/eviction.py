"""Which replicas make room, and from when on they may be asked to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from memory_manager.config import PlannerConfig
from memory_manager.policy.arrivals import BURST_GAP_S
from memory_manager.policy.plan_types import DeploymentView, ReplicaView
from memory_manager.policy.residency import ON_DEVICE, Residency

__all__ = [
    "Candidate",
    "choose",
    "choose_what_there_is",
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
        rank: 0 drains already, 1 is idle, 2 is in use.
        value_per_byte: what its absence is expected to cost, per byte that it frees.
        eligible_at_s: when it may be asked to go; in the past for now.
    """

    replica: ReplicaView
    rank: int
    value_per_byte: float
    eligible_at_s: float

    @property
    def bytes_freed(self) -> int:
        return footprint_bytes(self.replica)

    @property
    def value_s(self) -> float:
        """What its absence is expected to cost."""
        return self.value_per_byte * self.bytes_freed

    @property
    def order(self) -> tuple[int, float, float, str]:
        """Cheapest first; among equals the one that has been resident longest."""
        return (self.rank, self.value_per_byte, self.replica.since_s, self.replica.replica_id)


def footprint_bytes(replica: ReplicaView) -> int:
    """What a replica takes of its device: its lease, and its KV guarantee while it is there."""
    guarantee_bytes = replica.kv_guarantee_bytes if replica.residency in ON_DEVICE else 0
    return replica.lease_bytes + guarantee_bytes


def reuse_chance(
    replica: ReplicaView, deployment: DeploymentView, now_s: float, config: PlannerConfig
) -> float:
    """The chance of a request within the horizon: arrivals taken as Poisson, unless they have a rhythm."""
    chance = -math.expm1(-deployment.request_rate_per_s * config.reuse_horizon_s)
    window = deployment.next_arrival
    if window is None or now_s - replica.last_used_s < BURST_GAP_S:  # in the middle of a burst
        return chance
    if window.earliest_s <= now_s + config.reuse_horizon_s:
        return max(chance, config.expected_chance)
    return min(chance, config.unexpected_chance)


def in_priority(seconds: float, priority: int) -> float:
    """Seconds as they count at a priority: doubled with each step of it."""
    doublings = max(-_MAX_PRIORITY_DOUBLINGS, min(_MAX_PRIORITY_DOUBLINGS, priority))
    return float(seconds * 2.0**doublings)


def worth_s(deployment: DeploymentView, chance: float) -> float:
    """Seconds that having it resident is expected to save: the chance of use times the time to reload."""
    return in_priority(chance * deployment.reload_s, deployment.priority)


def value_per_byte(
    replica: ReplicaView, deployment: DeploymentView, now_s: float, config: PlannerConfig
) -> float:
    """What it is worth, over the bytes that its leaving frees."""
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
    """The replica as a candidate for making room, or None where it never is one for this demand.

    Pinned replicas never are; one in use never is for demand of lower priority.
    """
    if replica.in_flight or replica.residency not in (Residency.RESIDENT, Residency.DRAINING):
        return None
    if deployment.pinned and not deployment.held:
        return None
    value = value_per_byte(replica, deployment, now_s, config)
    if replica.residency is Residency.DRAINING:
        return Candidate(replica, 0, value, replica.retry_at_s)
    settled_s = replica.since_s + config.min_residency_s
    if replica.num_active == 0:
        eligible_at_s = min(replica.last_used_s + config.idle_grace_s, settled_s)
        return Candidate(replica, 1, value, max(eligible_at_s, replica.retry_at_s))
    if deployment.priority > demand_priority:
        return None
    eligible_at_s = max(settled_s, demand_since_s + config.drain_after_s, replica.retry_at_s)
    return Candidate(replica, 2, value, eligible_at_s)


def choose_what_there_is(candidates: Sequence[Candidate], shortage_bytes: int) -> Sequence[Candidate]:
    """As ``choose``, or all of them: some of it is better than nothing."""
    chosen = choose(candidates, shortage_bytes)
    return candidates if chosen is None else chosen


def choose(candidates: Sequence[Candidate], shortage_bytes: int) -> tuple[Candidate, ...] | None:
    """The cheapest candidates that free ``shortage_bytes``, none of them needlessly; None if all of them
    do not free enough."""
    chosen: list[Candidate] = []
    surplus_bytes = -shortage_bytes
    for candidate in sorted(candidates, key=lambda each: each.order):
        if surplus_bytes >= 0:
            break
        chosen.append(candidate)
        surplus_bytes += candidate.bytes_freed
    if surplus_bytes < 0:
        return None
    for candidate in reversed(chosen.copy()):
        # A large late choice may have made earlier or equally dear ones needless.
        if surplus_bytes >= candidate.bytes_freed:
            chosen.remove(candidate)
            surplus_bytes -= candidate.bytes_freed
    return tuple(chosen)
