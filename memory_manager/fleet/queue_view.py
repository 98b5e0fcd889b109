"""The queue of a device as status pages show it: who waits, for how long, and why. To look changes nothing."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from memory_manager.fleet.records import Deployment
from memory_manager.fleet.status import DeviceQueueStatus, QueueShare, WaitingStatus
from memory_manager.fleet.tickets import Waiter
from memory_manager.policy.admission import DeviceAdmission
from memory_manager.policy.device_queue import QueuePolicy
from memory_manager.policy.fairness import jain_index
from memory_manager.policy.wait_reason import WaitReason, wait_reason
from memory_manager.policy.worker_load import WorkerLoad

__all__ = ["NUM_LISTED", "Reasons", "queue_status"]

NUM_LISTED = 20
"""How many of those that wait are told one by one, of each device."""


class Reasons:
    """Tells why requests wait, asked in the order of service.

    Args:
        loads: of the workers, by id.
    """

    def __init__(self, loads: Mapping[str, WorkerLoad]) -> None:
        self._loads = loads
        self._with_first: set[str] = set()  # workers whose first has been asked about

    def of(self, waiter: Waiter, deployment: Deployment, *, is_late: bool) -> WaitReason:
        """Why a request waits; who goes before it has been asked about."""
        replica = deployment.best_replica()
        worker_id = replica.worker_id
        obstacle, is_first = None, False
        if replica.takes_requests and worker_id is not None:
            obstacle = self._loads[worker_id].obstacle(deployment.as_held(waiter))
            if obstacle is None or not obstacle.is_own:
                is_first = worker_id not in self._with_first
                self._with_first.add(worker_id)
        return wait_reason(
            replica.residency,
            takes_requests=replica.takes_requests,
            is_first=is_first,
            is_late=is_late,
            obstacle=obstacle,
        )


def queue_status(
    device: str,
    policy: QueuePolicy,
    line: DeviceAdmission[Waiter],
    deployments: Mapping[str, Deployment],
    served: Collection[str],
    reasons: Reasons,
    now_s: float,
) -> DeviceQueueStatus:
    """The queue of one device.

    Args:
        deployments: those that requests wait for, by name.
        served: tenants whose requests its workers have.
    """
    listed: list[WaitingStatus] = []
    shares: dict[tuple[str, str, int], QueueShare] = {}
    predicted_s: float | None = None
    active = set(served)
    for waiter, is_late in line.queue.in_order(now_s):
        deployment = deployments.get(waiter.model)
        if deployment is None or waiter.ticket.done():  # it is refused, and about to leave
            continue
        active.add(waiter.tenant)
        in_s = _finite(waiter.at_s + line.likely_s(waiter) - now_s)
        if not is_late and in_s is not None:
            predicted_s = max(in_s, predicted_s or 0.0)
        key = (waiter.model, waiter.tenant, waiter.priority)
        waited_s = now_s - waiter.at_s
        shares[key] = shares.get(key, QueueShare(*key)).with_one_more(waited_s, is_late=is_late)
        if len(listed) < NUM_LISTED:
            listed.append(
                WaitingStatus(
                    *key,
                    waited_s=waited_s,
                    due_in_s=_finite(waiter.deadline_s - now_s),
                    predicted_in_s=in_s,
                    is_late=is_late,
                    reason=reasons.of(waiter, deployment, is_late=is_late),
                )
            )
    return DeviceQueueStatus(
        device=device,
        policy=policy,
        shares=tuple(shares[key] for key in sorted(shares)),
        first=tuple(listed),
        predicted_s=predicted_s,
        jain_index=jain_index(line.counters.of(each) for each in active),
    )


def _finite(seconds: float) -> float | None:
    return seconds if math.isfinite(seconds) else None
