"""Finds, device by device, what it would take for a model that is not there to come in now; begins nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from memory_manager.config import PlannerConfig
from memory_manager.policy.plan_types import DeviceView, PlannerState, ReplicaView
from memory_manager.policy.residency import ON_DEVICE
from memory_manager.policy.what_if import Departure, Verdict, WayIn, way_in

__all__ = ["DeviceFit", "fit_by_device"]

_Fits = Literal["fits", "would_displace", "waits", "never"]
_VERDICTS: Mapping[Verdict, _Fits] = MappingProxyType(
    {
        Verdict.THERE: "fits",
        Verdict.COMES: "fits",
        Verdict.EVICTS: "would_displace",
        Verdict.WAITS: "waits",
        Verdict.BLOCKED: "waits",
        Verdict.NEVER: "never",
    }
)


@dataclass(frozen=True, slots=True)
class DeviceFit:
    """How a model would fit on one device.

    Attributes:
        message: a sentence with figures.
        weights_bytes: of its weights, in whole pages.
        kv_guarantee_bytes: KV that would be its own.
        kv_longest_bytes: KV of its longest sequence, which a worker keeps once for all of its models.
        free_bytes: of the device, promised to nobody now.
        leaving: the replicas that would leave, the cheapest first.
        takes_s: seconds that bringing the weights there is expected to take, once there is room.
    """

    verdict: _Fits
    message: str
    weights_bytes: int
    kv_guarantee_bytes: int
    kv_longest_bytes: int
    free_bytes: int
    leaving: tuple[Departure, ...]
    takes_s: float


def fit_by_device(
    state: PlannerState,
    candidate: ReplicaView,
    takes_s: Mapping[str, float],
    now_s: float,
    config: PlannerConfig,
) -> dict[str, DeviceFit]:
    """Tells for each device by its name what one request that came now would bring about, if the candidate could go
    to that device alone.

    Args:
        state: the present state, with the candidate's deployment in it, and with that deployment's other replicas.
        candidate: a cold replica.
        takes_s: by device, as ``DeviceFit`` tells it.
    """
    return {
        each.name: _fit_on(each, state, candidate, takes_s[each.name], now_s, config)
        for each in state.devices
    }


def _fit_on(
    device: DeviceView,
    state: PlannerState,
    candidate: ReplicaView,
    takes_s: float,
    now_s: float,
    config: PlannerConfig,
) -> DeviceFit:
    workers = tuple(each for each in state.workers if each.device == device.name)
    ids = {each.worker_id for each in workers}
    hosted = [each for each in state.replicas if each.worker_id in ids]
    own = [each for each in hosted if each.deployment == candidate.deployment]
    if any(each.residency in ON_DEVICE and not each.retired for each in own):
        found = WayIn(Verdict.THERE, "it is on this device, or on its way")
    else:
        others = [each for each in hosted if each not in own]
        other_ids = {each.replica_id for each in others}
        copies = tuple(each for each in state.host.copies if each.replica_id in other_ids)
        alone = replace(
            state,
            devices=(device,),
            workers=workers,
            replicas=(*others, candidate),
            host=replace(state.host, copies=copies),
        )
        found = way_in(alone, candidate.deployment, now_s, config)
    promised_bytes = sum(each.lease_bytes for each in hosted) + sum(each.kv_lease_bytes for each in workers)
    return DeviceFit(
        _VERDICTS[found.verdict],
        found.message,
        candidate.weights_bytes,
        candidate.kv_guarantee_bytes,
        candidate.kv_longest_bytes,
        max(0, device.budget_bytes - device.fixed_bytes - device.others_bytes - promised_bytes),
        found.leaving,
        takes_s,
    )
