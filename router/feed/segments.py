"""The bytes of a device by owner, promised and used: the memory map's segments. Pure.

Promised bytes are the ledger's, and with what nobody was promised they make up the budget exactly. Used bytes are the
workers' own, as of their last answer.
"""

from __future__ import annotations

from collections.abc import Iterable

from memory_manager.fleet.status import DeviceStatus, WorkerStatus
from memory_manager.stats import WorkerStats
from mooring.merge_patch import Document

__all__ = ["FREE", "kv_parts", "segments"]

FREE = "free"
"""Id of the segment that nobody was promised. Every other id is an owner of the ledger."""

_KINDS = {"others": "other"}
_LABELS = {"reserve": "reserve", "others": "other processes"}


def segments(device: DeviceStatus, workers: Iterable[WorkerStatus]) -> dict[str, Document]:
    """The segments of a device, by id. Their ``promised_bytes`` sum to its budget.

    Args:
        workers: those on the device.
    """
    found = {owner: _promised(owner, num_bytes) for owner, num_bytes in device.owners.items()}
    num_ready_bytes = 0
    for worker in workers:
        num_ready_bytes += worker.stats.ready_bytes
        for replica in worker.stats.replicas:
            owner = f"weights:{replica.replica_id}"
            # One that has just left its lease may still be in the worker's last answer.
            if owner in found or replica.weights_bytes:
                weights = found.setdefault(owner, _promised(owner, 0))
                weights["used_bytes"] += replica.weights_bytes
                weights["worker"] = worker.worker_id
        owner = f"kv:{worker.worker_id}"
        kv = found.setdefault(owner, _promised(owner, 0))
        kv["used_bytes"] = worker.stats.kv_bytes
        kv.update(kv_parts(worker.stats))
    found[FREE] = {
        "kind": "free",
        "label": "free",
        "promised_bytes": device.budget_bytes - sum(device.owners.values()),
        "used_bytes": num_ready_bytes,  # what workers keep ready for whoever grows
    }
    return found


def kv_parts(stats: WorkerStats) -> dict[str, int]:
    """The committed KV of a worker by use; the parts sum to ``stats.kv_bytes``: blocks of sequences that run, those
    of sequences that are parked, those kept to be found again, and the rest, which holds no token."""
    live = {True: 0, False: 0}  # by whether the replica sleeps
    cached_bytes = 0
    for replica in stats.replicas:
        live[replica.residency == "warm"] += replica.kv_live_bytes
        cached_bytes += replica.kv_cached_bytes
    return {
        "in_use_bytes": live[False],
        "parked_bytes": live[True],
        "cached_bytes": cached_bytes,
        "unused_bytes": stats.kv_bytes - live[False] - live[True] - cached_bytes,
    }


def _promised(owner: str, num_bytes: int) -> Document:
    kind, _, name = owner.partition(":")
    segment: Document = {"kind": _KINDS.get(kind, kind), "promised_bytes": num_bytes}
    if kind == "weights":
        deployment = name.rpartition("/")[0]
        return segment | {"label": deployment, "deployment": deployment, "replica": name, "used_bytes": 0}
    if kind == "kv":
        return segment | {"label": f"KV of {name}", "worker": name, "used_bytes": 0}
    return segment | {"label": _LABELS.get(kind, kind)}
