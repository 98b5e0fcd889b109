"""What a soak reads in the books of a server at rest."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["count_mismatches", "growth_share"]


def count_mismatches(status: Mapping[str, Any]) -> int:
    """Contradictions within one reading of ``/admin/v1/status``, taken while nothing runs: a device that promised
    more than its budget, KV beyond its leases, weights that are not what the ledger leased."""
    replicas = [replica for each in status["deployments"] for replica in each["replicas"]]
    kv_bytes = sum(replica["kv_bytes"] for replica in replicas)
    found = 0
    for device in status["devices"]:
        owners = device["owners"]
        found += sum(owners.values()) > device["budget_bytes"]
        found += kv_bytes > sum(num for owner, num in owners.items() if owner.startswith("kv:"))
        found += sum(
            owners.get(f"weights:{replica['id']}", 0) != replica["weights_bytes"] for replica in replicas
        )
    return found


def growth_share(values: Sequence[float]) -> float:
    """How much more the last quarter is than the one before it, by their medians; 0 where it is less."""
    half = values[len(values) // 2 :]
    if len(half) < 2:
        return 0.0
    before, after = half[: len(half) // 2], half[len(half) // 2 :]
    return max(0.0, statistics.median(after) / statistics.median(before) - 1)
