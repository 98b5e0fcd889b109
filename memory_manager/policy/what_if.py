"""Finds what would have to happen for a deployment to come in now: asks the planner, and begins nothing."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from memory_manager.config import PlannerConfig
from memory_manager.policy.device_room import DeviceRoom
from memory_manager.policy.plan_types import (
    DemandView,
    DeploymentView,
    Load,
    Plan,
    PlannerState,
    ReplicaView,
    Sleep,
    Unload,
    Wake,
)
from memory_manager.policy.planner import plan
from memory_manager.policy.residency import ON_DEVICE
from mooring.units import format_bytes

__all__ = ["Departure", "Verdict", "WayIn", "way_in"]


class Verdict(enum.Enum):
    """How things would stand for a request that came now."""

    THERE = "there"  # a replica is on a device, or on its way to it
    COMES = "comes"  # there is room; KV gives way if it has to
    EVICTS = "evicts"  # other replicas leave for it
    WAITS = "waits"  # other replicas leave for it, but not yet
    BLOCKED = "blocked"  # no replica may leave for it as things are
    NEVER = "never"  # it fits on no device


@dataclass(frozen=True, slots=True)
class Departure:
    """A replica that would have to leave, and the bytes that its leaving frees (weights and KV)."""

    replica_id: str
    deployment: str
    freed_bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class WayIn:
    """The planner's answer.

    Attributes:
        message: a sentence with figures.
        leaving: the replicas that would leave, the cheapest first.
    """

    verdict: Verdict
    message: str
    leaving: tuple[Departure, ...] = ()


def way_in(state: PlannerState, name: str, now_s: float, config: PlannerConfig) -> WayIn:
    """Tells what one request for ``name`` that came now would bring about.

    Args:
        state: the present state, with the deployment and its replicas in it; requests that wait or are parked
            already are left out.
    """
    own = [each for each in state.replicas if each.deployment == name and not each.retired]
    if any(each.residency in ON_DEVICE for each in own):
        return WayIn(Verdict.THERE, "it is on a device, or on its way")
    fresh = DemandView(1, now_s, 0, (now_s + config.ttft_target_s,))
    alone = _alone(state, name, fresh)
    decided = plan(alone, now_s, config)
    if name in decided.refusals:
        return WayIn(Verdict.NEVER, decided.refusals[name])
    own_ids = {each.replica_id for each in own}
    comes = any(isinstance(each, Load | Wake) and each.replica_id in own_ids for each in decided.actions)
    kv_bytes = max(own[0].kv_guarantee_bytes, own[0].kv_longest_bytes)
    need = f"it needs {format_bytes(own[0].weights_bytes)} of weights, and {format_bytes(kv_bytes)} of KV"
    if comes or _fits(alone, own[0], name, config):
        return WayIn(Verdict.COMES, f"{need}, for which there is room once KV has given way")
    if leaving := _departures(alone, decided, name):
        return WayIn(Verdict.EVICTS, f"{need}: these would leave at once", leaving)
    due_s = decided.next_at_s - now_s
    if due_s < math.inf and (leaving := _departures(alone, plan(alone, decided.next_at_s, config), name)):
        return WayIn(Verdict.WAITS, f"{need}: these would leave in {due_s:.2g} s", leaving)
    wait_s = config.starve_after_s
    starved = _alone(state, name, DemandView(1, now_s - wait_s, 0, (-math.inf,)))
    if leaving := _departures(starved, plan(starved, now_s, config), name):
        message = f"{need}: these would leave once a request has waited {wait_s:g} s, or when they are unused"
        return WayIn(Verdict.WAITS, message, leaving)
    return WayIn(Verdict.BLOCKED, f"{need}: {_obstacle(state, name)}")


def _alone(state: PlannerState, name: str, demand: DemandView) -> PlannerState:
    """The state in which one deployment alone is asked for, with nothing that would keep it from being brought."""

    def asked(deployment: DeploymentView) -> DeploymentView:
        if deployment.name != name:
            return deployment._replace(demand=None, exchange=None)
        policy = replace(deployment.policy, enabled=True)
        wanted = demand._replace(priority=policy.priority)
        return deployment._replace(demand=wanted, held=False, policy=policy, exchange=None)

    def ready(replica: ReplicaView) -> ReplicaView:
        num_active = replica.num_active if replica.residency in ON_DEVICE else 0
        if replica.deployment != name:
            return replica._replace(num_active=num_active)
        return replica._replace(num_active=num_active, retry_at_s=-math.inf, since_s=-math.inf)

    return replace(
        state,
        deployments=tuple(map(asked, state.deployments)),
        replicas=tuple(map(ready, state.replicas)),
    )


def _obstacle(state: PlannerState, name: str) -> str:
    """Why nothing comes in although everything fits on some device."""
    [deployment] = [each for each in state.deployments if each.name == name]
    if not any(each.can_have(deployment) for each in state.workers):
        return "there is no worker for it that takes orders"
    claims = [
        f"other processes have {format_bytes(each.others_bytes)} of {each.name}"
        for each in state.devices
        if each.others_bytes
    ]
    return "; ".join(["all that is there is pinned, or in use at a higher priority", *claims])


def _fits(state: PlannerState, replica: ReplicaView, name: str, config: PlannerConfig) -> bool:
    [deployment] = [each for each in state.deployments if each.name == name]
    for device in state.devices:
        workers = [each for each in state.workers if each.device == device.name]
        ids = {each.worker_id for each in workers}
        hosted = [each for each in state.replicas if each.worker_id in ids]
        room = DeviceRoom(device, workers, hosted, config)
        able = [each for each in workers if each.can_have(deployment)]
        if any(room.fits_now(each, replica, replica.weights_bytes) for each in able):
            return True
    return False


def _departures(state: PlannerState, decided: Plan, name: str) -> tuple[Departure, ...]:
    deployment_of = {each.replica_id: each.deployment for each in state.replicas}
    leaving: Sequence[Sleep | Unload] = [
        each for each in decided.actions if isinstance(each, Sleep | Unload) and each.room_for == name
    ]
    return tuple(
        Departure(
            each.replica_id,
            deployment_of[each.replica_id],
            int(each.figures["freed_bytes"]),
            each.reason,
        )
        for each in leaving
    )
