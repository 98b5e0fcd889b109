"""Checks of a server's books at rest, for the soak."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["count_mismatches", "growth_share"]


def count_mismatches(status: Mapping[str, Any]) -> int:
    """Counts contradictions within one reading of ``/admin/v1/status``, taken while nothing runs: a device
    that promised more than its budget, KV beyond its leases, weights that differ from the ledger's lease."""
    replicas = [replica for each in status["deployments"] for replica in each["replicas"]]
    kv_bytes = sum(replica["stats"]["kv_bytes"] for replica in replicas)
    found = 0
    for device in status["devices"]:
        owners = device["owners"]
        found += sum(owners.values()) > device["budget_bytes"]
        found += kv_bytes > sum(num for owner, num in owners.items() if owner.startswith("kv:"))
        found += sum(
            owners.get(f"weights:{replica['id']}", 0) != replica["lease_bytes"] for replica in replicas
        )
    return found


def growth_share(values: Sequence[float]) -> float:
    """The share by which the last quarter exceeds the one before it, by their medians; 0 if it does not."""
    half = values[len(values) // 2 :]
    if len(half) < 2:
        return 0.0
    before, after = half[: len(half) // 2], half[len(half) // 2 :]
    return max(0.0, statistics.median(after) / statistics.median(before) - 1)
