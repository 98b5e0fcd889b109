"""Deployments that can never fit, however long their requests wait."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from memory_manager.config import PlannerConfig
from memory_manager.policy.kv_floor import KVFloor
from memory_manager.policy.plan_types import DeploymentView, DeviceView, PlannerState, WorkerView
from memory_manager.policy.residency import ON_DEVICE
from mooring.units import format_bytes

__all__ = ["refusals"]


@dataclass(slots=True)
class _Device:
    """Room of a device for replicas, as pinned deployments get their places.

    Attributes:
        weights_bytes: of those that have one.
        floors: of its workers, by their ids.
        unborn: of those that have no worker yet.
    """

    view: DeviceView
    workers: list[WorkerView]
    floors: dict[str, KVFloor]
    unborn: KVFloor
    weights_bytes: int = 0

    @property
    def left_bytes(self) -> int:
        kept_bytes = sum(each.num_bytes for each in (*self.floors.values(), self.unborn))
        return self.view.budget_bytes - self.view.fixed_bytes - self.weights_bytes - kept_bytes

    def need_bytes(self, deployment: DeploymentView) -> int:
        """Bytes that a deployment needs beside those that have a place."""
        return deployment.weights_bytes + self._best_floor(deployment).growth_bytes(deployment)

    def has_room(self, deployment: DeploymentView) -> bool:
        return self.need_bytes(deployment) <= self.left_bytes

    def place(self, deployment: DeploymentView, worker_id: str | None) -> None:
        """Counts a deployment, in its worker or else where it needs least."""
        floor = self._best_floor(deployment) if worker_id is None else self.floors[worker_id]
        floor.add(deployment.name, deployment)
        self.weights_bytes += deployment.weights_bytes

    def _best_floor(self, deployment: DeploymentView) -> KVFloor:
        """The floor of the worker where a deployment needs least."""
        floors = [self.floors[each.worker_id] for each in self.workers if each.can_have(deployment)]
        return min(floors, key=lambda each: each.growth_bytes(deployment), default=self.unborn)


def refusals(state: PlannerState, config: PlannerConfig) -> dict[str, str]:
    """Refuses deployments that requests wait for, or that are pinned, and that no device can hold beside its
    reserve and its other pinned deployments.

    Returns:
        By name of the deployment, a message with the figures.
    """
    devices = {each.name: _device(each, state, config) for each in state.devices}
    homed = _place_pinned(state, devices)
    rooms = [(each, each.left_bytes) for each in devices.values()]
    most_bytes = max((left_bytes for _, left_bytes in rooms), default=0)
    return {
        each.name: _message(each, devices.values())
        for each in state.deployments
        if each.policy.enabled
        and (each.demand is not None or each.policy.pinned)
        and each.name not in homed
        and _alone_bytes(each) > most_bytes  # what is alone needs most
        and not any(device.need_bytes(each) <= left_bytes for device, left_bytes in rooms)
    }


def _device(view: DeviceView, state: PlannerState, config: PlannerConfig) -> _Device:
    workers = [each for each in state.workers if each.device == view.name]
    base_bytes = config.kv_base_bytes
    floors = {each.worker_id: KVFloor(base_bytes, is_elastic=each.elastic_kv) for each in workers}
    return _Device(view, workers, floors, KVFloor(0 if workers else base_bytes, is_elastic=True))


def _place_pinned(state: PlannerState, devices: dict[str, _Device]) -> set[str]:
    """Gives pinned deployments their places, and returns those that have one. A deployment stays where it is;
    otherwise it gets the device with most room left, and deployments of higher priority choose first."""
    present = _present_on(state)
    device_of = {each.worker_id: each.device for each in state.workers}
    homed: set[str] = set()
    pinned: Iterable[DeploymentView] = (
        each for each in state.deployments if each.policy.pinned and each.policy.enabled
    )
    for deployment in sorted(
        pinned, key=lambda each: (each.name not in present, -each.policy.priority, each.name)
    ):
        worker_id = present.get(deployment.name)
        name = (
            device_of[worker_id]
            if worker_id is not None
            else max(devices, key=lambda name: (devices[name].left_bytes, name))
        )
        if devices[name].has_room(deployment):
            devices[name].place(deployment, worker_id)
            homed.add(deployment.name)
    return homed


def _present_on(state: PlannerState) -> dict[str, str]:
    """The worker of each deployment that is on a device."""
    return {
        each.deployment: each.worker_id
        for each in state.replicas
        if each.residency in ON_DEVICE and each.worker_id is not None and not each.retired
    }


def _alone_bytes(deployment: DeploymentView) -> int:
    """Bytes that a deployment needs in a worker of its own."""
    return deployment.weights_bytes + max(deployment.kv_guarantee_bytes, deployment.kv_longest_bytes)


def _message(deployment: DeploymentView, devices: Iterable[_Device]) -> str:
    alone_bytes = _alone_bytes(deployment)
    kv_bytes = alone_bytes - deployment.weights_bytes

    def most_bytes(device: _Device) -> int:
        """With what it can share of the KV that is kept for others."""
        return device.left_bytes + alone_bytes - device.need_bytes(deployment)

    best = max(devices, key=lambda each: (most_bytes(each), each.view.name))
    device, left_bytes = best.view, most_bytes(best)
    pinned_bytes = device.budget_bytes - device.fixed_bytes - left_bytes
    return (
        f"model {deployment.name!r} can never fit: it needs {format_bytes(alone_bytes)} "
        f"({format_bytes(deployment.weights_bytes)} of weights, {format_bytes(kv_bytes)} of KV for one request of "
        f"full length or as guaranteed), and {device.name} has at most {format_bytes(max(0, left_bytes))} for it: a "
        f"budget of {format_bytes(device.budget_bytes)}, less {format_bytes(device.fixed_bytes)} of reserve and "
        f"{format_bytes(pinned_bytes)} of pinned models and worker overhead; raise the memory budget, lower "
        "the model's maximum length or unpin a model"
    )
