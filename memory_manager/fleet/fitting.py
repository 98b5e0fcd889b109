"""A dry run: a deployment that is not there, put among those that are, for the planner to weigh."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from memory_manager.config import ManagerConfig
from memory_manager.fleet.records import Deployment, HostCopies, Replica
from memory_manager.policy.fit import DeviceFit, fit_by_device
from memory_manager.policy.plan_types import PlannerState
from memory_manager.policy.residency import Residency, ResidencyState

__all__ = ["fit"]

_CANDIDATE = "candidate"


def fit(
    wanted: Deployment,
    measured: Deployment | None,
    others: Iterable[Deployment],
    replicas: Collection[Replica],
    state_of: Callable[[Iterable[Deployment], Collection[Replica]], PlannerState],
    host_cache: HostCopies,
    now_s: float,
    config: ManagerConfig,
) -> dict[str, DeviceFit]:
    """Tells for each device by its name how a deployment would fit there.

    Args:
        wanted: a deployment that nobody else knows; it is given a replica.
        measured: the deployment of that name that is there, None if there is none.
        others: all others.
        replicas: all that are there.
        state_of: makes the state that the planner reads.
    """
    candidate = Replica(_CANDIDATE, wanted, wanted.spec, ResidencyState(Residency.COLD, now_s))
    wanted.replicas.append(candidate)
    state = state_of([*others, wanted], [*replicas, candidate])
    [view] = [each for each in state.replicas if each.replica_id == _CANDIDATE]
    way = "wake" if host_cache.contains(wanted.spec.artifact.key) else "load"
    takes_s = {each.name: _takes_s(wanted, measured, way, each.name, config) for each in state.devices}
    return fit_by_device(state, view, takes_s, now_s, config)


def _takes_s(
    wanted: Deployment, measured: Deployment | None, way: str, device: str, config: ManagerConfig
) -> float:
    """Seconds that bringing it to a device is expected to take, as measured or guessed from its size."""
    before_s = None
    if measured is not None and measured.spec.weights_bytes == wanted.spec.weights_bytes:
        before_s = measured.wake_s if way == "wake" else measured.load_s
    if before_s is not None:
        return before_s
    rate = wanted.links.bytes_per_s(device).get(way, config.copy_bytes_per_s)
    return wanted.spec.weights_bytes / rate
