"""The state of the server as one document, made of what its parts say at one moment. Pure.

Members without a value are left out, maps are keyed by name so that patches are small, and figures are rounded to
what is worth showing, so that nothing changes for nothing. Times are in seconds of the Unix epoch, sizes in bytes,
shares from 0 to 1. docs/http.md has the whole document.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engines.supervise.supervisor import WorkerProcess
from memory_manager.fleet.status import (
    DeviceQueueStatus,
    DeviceStatus,
    ReplicaStatus,
    Snapshot,
    WorkerStatus,
)
from memory_manager.host.copy_memory import CopyStatus
from memory_manager.policy.residency import Residency
from mooring.merge_patch import Document, filled
from router.feed.rounding import short
from router.feed.segments import segments

__all__ = ["HostTierStatus", "Present", "server_state"]


@dataclass(frozen=True, slots=True)
class HostTierStatus:
    """The host tier. ``copies``: by artifact key; ``deployments``: names of those that an artifact serves."""

    budget_bytes: int
    used_bytes: int
    copies: Mapping[str, CopyStatus]
    deployments: Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Present:
    """The server at one moment, as its parts tell.

    Attributes:
        offset_s: seconds from the manager's clock to the Unix epoch.
        server: what is shown of the server itself.
        workers: the supervisor's view.
        memory: the devices' own figures, of those that can be read, as they are shown.
        utilization: share of the last seconds in which a device computed.
        deployments, registrations, attainment, alerts: as they are shown.
        figures: of the last seconds; None where there is none.
    """

    snapshot: Snapshot
    offset_s: float
    server: Mapping[str, Any]
    workers: Sequence[WorkerProcess]
    memory: Mapping[str, Document]
    utilization: Mapping[str, float]
    host: HostTierStatus
    deployments: Document
    registrations: Document = field(default_factory=dict)
    figures: Mapping[str, float | None] = field(default_factory=dict)
    attainment: Document = field(default_factory=dict)
    alerts: Document = field(default_factory=dict)


def server_state(present: Present) -> Document:
    """The document, without the time at which it was made."""
    snapshot, offset_s = present.snapshot, present.offset_s
    on_device: dict[str, list[WorkerStatus]] = defaultdict(list)
    for worker in snapshot.workers:
        on_device[worker.device].append(worker)
    replicas = [replica for each in snapshot.deployments for replica in each.replicas]
    server = {**present.server, "ledger_mismatches": snapshot.num_ledger_mismatches}
    return {
        "server": server,
        "devices": {
            each.name: _device(each, on_device[each.name], replicas, present) for each in snapshot.devices
        },
        "host": _host(present.host),
        "workers": _workers(present),
        "deployments": present.deployments,
        "queues": {each.device: _queue(each, snapshot.at_s, offset_s) for each in snapshot.queues},
        "registrations": present.registrations,
        "figures": {name: short(value) for name, value in present.figures.items() if value is not None},
        "attainment": present.attainment,
        "alerts": present.alerts,
    }


def _device(
    device: DeviceStatus, workers: Sequence[WorkerStatus], replicas: Iterable[ReplicaStatus], present: Present
) -> Document:
    sampled_at_s = [each.sampled_at_s for each in workers if each.sampled_at_s is not None]
    utilization = present.utilization.get(device.name)
    ids = {each.worker_id for each in workers}
    num_active = {True: 0, False: 0}  # by whether the replica sleeps
    for replica in replicas:
        if replica.worker_id in ids:
            num_active[replica.residency is Residency.WARM] += replica.num_active
    return filled(
        budget_bytes=device.budget_bytes,
        sampled_at=math.floor(min(sampled_at_s) + present.offset_s) if sampled_at_s else None,
        utilization=None if utilization is None else round(utilization, 2),
        memory=present.memory.get(device.name),
        segments=segments(device, workers),
        running=num_active[False],
        parked=num_active[True],
    )


def _host(host: HostTierStatus) -> Document:
    copies = {
        key: {
            "bytes": copy.num_bytes,
            "state": copy.state,
            "deployments": list(host.deployments.get(key, ())),
        }
        for key, copy in host.copies.items()
    }
    return {"budget_bytes": host.budget_bytes, "used_bytes": host.used_bytes, "copies": copies}


def _workers(present: Present) -> Document:
    managed = {each.worker_id: each for each in present.snapshot.workers}
    found: Document = {}
    for process in present.workers:
        worker = filled(
            device=process.device,
            state=process.state.value,
            pid=process.pid,
            restarts_total=process.restarts_total,
        )
        status = managed.get(process.worker_id)
        if status is not None:
            replicas = status.stats.replicas
            worker |= {
                "kv_lease_bytes": status.kv_lease_bytes,
                "kv_used_bytes": status.stats.kv_bytes,
                "num_running": sum(each.num_running for each in replicas),
                "num_waiting": sum(each.num_queued for each in replicas),
            }
        found[process.worker_id] = worker
    return found


def _queue(queue: DeviceQueueStatus, now_s: float, offset_s: float) -> Document:
    """The queue of a device. Seconds from now are shown as times, which stand while nothing happens."""

    def at(in_s: float | None) -> float | None:
        return None if in_s is None else round(now_s + in_s + offset_s, 2)

    return filled(
        policy=queue.policy.value,
        num_in_time=queue.num_in_time,
        num_late=queue.num_late,
        oldest_since=at(-queue.oldest_s) if queue.shares else None,
        predicted_at=at(queue.predicted_s),
        jain_index=round(queue.jain_index, 2),
        waiting={
            str(place): filled(
                deployment=each.deployment,
                tenant=each.tenant,
                priority=each.priority,
                since=at(-each.waited_s),
                due_at=at(each.due_in_s),
                predicted_at=at(each.predicted_in_s),
                is_late=each.is_late,
                reason=each.reason.value,
            )
            for place, each in enumerate(queue.first)
        },
    )
