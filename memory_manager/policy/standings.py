"""Replicas as the chooser weighs them."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from memory_manager.config import PlannerConfig
from memory_manager.policy.arrivals import BURST_GAP_S, unused_from_s
from memory_manager.policy.plan_types import DeploymentView, ReplicaView
from memory_manager.policy.stakes import Standing, horizon_s, num_lost_soon

__all__ = [
    "fresh_slack_s",
    "guest_s",
    "is_missed",
    "of_resident",
    "of_wanted",
    "slacks_s",
    "stay_s",
    "weight_of",
]

_MAX_DOUBLINGS = 32


@functools.lru_cache(maxsize=256)
def weight_of(priority: int) -> float:
    """Weight of each request of a priority: double with each step up."""
    return float(2.0 ** max(-_MAX_DOUBLINGS, min(_MAX_DOUBLINGS, priority)))


def stay_s(back_s: float, *, is_guest: bool) -> float:
    """Seconds for which a model stays at least once it has come: as long as it took to come, and a guest 1 s."""
    return max(1.0, back_s) if is_guest else back_s


def guest_s(back_s: float) -> float:
    """Seconds for which what came for late requests alone counts as a guest."""
    return 2 * horizon_s(back_s)


def fresh_slack_s(first_token_s: float, config: PlannerConfig) -> float:
    """Slack of a request that has just come."""
    return config.ttft_target_s - first_token_s


def is_missed(rate_per_s: float, back_s: float, first_token_s: float, config: PlannerConfig) -> bool:
    """Whether so many requests are to come that some would miss their targets while their model is away."""
    return num_lost_soon(rate_per_s, back_s, fresh_slack_s(first_token_s, config)) >= 1


def slacks_s(latest_s: Sequence[float], now_s: float) -> tuple[float, ...]:
    """Slacks of requests, in ascending order, from the latest moments of each."""
    return tuple([latest - now_s for latest in sorted(latest_s)])


def of_resident(
    replica: ReplicaView,
    deployment: DeploymentView,
    num_bytes: int,
    num_up: int,
    *,
    may_leave: bool,
    now_s: float,
    config: PlannerConfig,
) -> Standing:
    """A replica that is on a device.

    Args:
        num_bytes: what its leaving frees.
        num_up: replicas of the deployment that share its requests.
        may_leave: nothing forbids that it leave.
    """
    back_s = deployment.reload_s
    rate_per_s, num_expected = _expected(replica, deployment, now_s, config)
    last_used_s = max(replica.last_used_s, replica.since_s)
    unused_at_s = unused_from_s(last_used_s, deployment.longest_pause_s, back_s, config)
    return Standing(  # by position: with keywords so long a tuple takes more than twice the time
        replica.replica_id,
        num_bytes,
        True,
        may_leave,
        False,
        back_s,
        slacks_s(replica.latest_s, now_s),
        rate_per_s / max(1, num_up),
        num_expected / max(1, num_up),
        fresh_slack_s(deployment.first_token_s, config),
        weight_of(deployment.policy.priority),
        0.0,
        now_s >= replica.since_s + stay_s(back_s, is_guest=replica.is_guest),
        not replica.num_active and deployment.demand is None and now_s >= unused_at_s,
        replica.is_guest and now_s < replica.since_s + guest_s(back_s),
    )


def of_wanted(
    replica: ReplicaView,
    deployment: DeploymentView,
    *,
    num_expected: float,
    priority: int,
    now_s: float,
    config: PlannerConfig,
) -> Standing:
    """A replica that is to be brought for the requests that wait for its deployment.

    Args:
        num_expected: those that a rhythm lets expect.
        priority: of its requests.
    """
    demand = deployment.demand
    waited_s = 0.0 if demand is None else now_s - max(demand.oldest_arrival_s, replica.since_s)
    return Standing(  # by position: with keywords so long a tuple takes more than twice the time
        replica.replica_id,
        replica.weights_bytes + replica.kv_guarantee_bytes,
        False,
        False,
        True,
        deployment.reload_s,
        slacks_s(() if demand is None else demand.latest_s, now_s),
        deployment.request_rate_per_s,
        num_expected,
        fresh_slack_s(deployment.first_token_s, config),
        weight_of(priority),
        waited_s,
    )


def _expected(
    replica: ReplicaView, deployment: DeploymentView, now_s: float, config: PlannerConfig
) -> tuple[float, float]:
    """The rate of a replica's requests, and those that its rhythm lets expect, which take the rate's place between
    two bursts."""
    window = deployment.next_arrival
    in_burst = now_s - replica.last_used_s < BURST_GAP_S
    if window is None or in_burst:
        return deployment.request_rate_per_s, 0.0
    is_soon = window.earliest_s <= now_s + horizon_s(deployment.reload_s)
    if is_soon:
        return 0.0, config.expected_chance
    return deployment.request_rate_per_s * config.unexpected_share, 0.0
