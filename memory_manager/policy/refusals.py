"""Deployments that can never fit, however long their requests wait."""

from __future__ import annotations

from collections.abc import Iterable

from memory_manager.config import PlannerConfig
from memory_manager.policy.plan_types import DeploymentView, DeviceView, PlannerState
from memory_manager.policy.residency import ON_DEVICE
from mooring.units import format_bytes

__all__ = ["refusals"]


def refusals(state: PlannerState, config: PlannerConfig) -> dict[str, str]:
    """Refuses deployments that requests wait for, or that are pinned, and that no device can hold beside its
    reserve and its other pinned deployments.

    Returns:
        By name of the deployment, a message with the figures.
    """
    rooms = {each.name: _room_bytes(each, state, config) for each in state.devices}
    homes = _pinned_homes(state, rooms)
    left = dict(rooms)
    for name, device in homes.items():
        left[device] -= _need_bytes(next(each for each in state.deployments if each.name == name))
    return {
        each.name: _message(each, state.devices, left)
        for each in state.deployments
        if each.policy.enabled
        and (each.demand is not None or each.policy.pinned)
        and each.name not in homes
        and all(_need_bytes(each) > left_bytes for left_bytes in left.values())
    }


def _need_bytes(deployment: DeploymentView) -> int:
    return deployment.weights_bytes + deployment.kv_guarantee_bytes


def _room_bytes(device: DeviceView, state: PlannerState, config: PlannerConfig) -> int:
    num_workers = sum(each.device == device.name for each in state.workers)
    return device.budget_bytes - device.fixed_bytes - max(1, num_workers) * config.kv_base_bytes


def _pinned_homes(state: PlannerState, rooms: dict[str, int]) -> dict[str, str]:
    """The device of each pinned deployment that has a place. A deployment stays on the device where it is;
    otherwise it gets the one with most room left, and deployments of higher priority choose first."""
    present = _present_on(state)
    left = dict(rooms)
    homes: dict[str, str] = {}
    pinned: Iterable[DeploymentView] = (
        each for each in state.deployments if each.policy.pinned and each.policy.enabled
    )
    for deployment in sorted(
        pinned, key=lambda each: (each.name not in present, -each.policy.priority, each.name)
    ):
        device = present.get(deployment.name) or max(left, key=lambda name: (left[name], name))
        if _need_bytes(deployment) <= left[device]:
            left[device] -= _need_bytes(deployment)
            homes[deployment.name] = device
    return homes


def _present_on(state: PlannerState) -> dict[str, str]:
    device_of = {each.worker_id: each.device for each in state.workers}
    return {
        each.deployment: device_of[each.worker_id]
        for each in state.replicas
        if each.residency in ON_DEVICE and each.worker_id is not None and not each.retired
    }


def _message(deployment: DeploymentView, devices: tuple[DeviceView, ...], left: dict[str, int]) -> str:
    device = max(devices, key=lambda each: (left[each.name], each.name))
    fixed_bytes, left_bytes = device.fixed_bytes, max(0, left[device.name])
    pinned_bytes = device.budget_bytes - fixed_bytes - left[device.name]
    return (
        f"model {deployment.name!r} can never fit: it needs {format_bytes(_need_bytes(deployment))} "
        f"({format_bytes(deployment.weights_bytes)} of weights, "
        f"{format_bytes(deployment.kv_guarantee_bytes)} of KV for one request of full length), and "
        f"{device.name} has at most {format_bytes(left_bytes)} for it: a budget of "
        f"{format_bytes(device.budget_bytes)}, less {format_bytes(fixed_bytes)} of reserve and "
        f"{format_bytes(pinned_bytes)} of pinned models and worker overhead; raise the memory budget, lower "
        "the model's maximum length or unpin a model"
    )
