"""Segments of a device: what is promised sums to the budget, what is used is what the workers say."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from memory_manager.fleet.ledger import Ledger, Owner
from memory_manager.fleet.status import DeviceStatus, WorkerStatus
from memory_manager.kv_spec import PAGE_BYTES
from memory_manager.stats import ReplicaStats, WorkerStats
from router.feed.segments import FREE, segments

WORKERS = ("w-0", "w-1")
REPLICAS = ("a/0", "b/1", "org/c/2")
BYTES = st.integers(0, 40).map(lambda pages: pages * PAGE_BYTES)
OWNERS = [
    Owner("reserve"),
    *(Owner("weights", name) for name in REPLICAS),
    *(Owner("kv", name) for name in WORKERS),
]


@st.composite
def devices(draw: st.DrawFn) -> DeviceStatus:
    """A device as a ledger shows it after some leases, and a claim of other processes."""
    ledger = Ledger("cpu", draw(st.integers(1, 100)) * PAGE_BYTES + draw(st.integers(0, 5)))
    for owner in OWNERS:
        ledger.grant(owner, draw(BYTES))
    ledger.set_others(draw(BYTES))
    owners = {str(owner): num_bytes for owner, num_bytes in ledger.owners().items()}
    return DeviceStatus(ledger.device, ledger.budget_bytes, owners)


@st.composite
def workers(draw: st.DrawFn, worker_id: str) -> WorkerStatus:
    """A worker whose KV is that of its replicas and some more that holds no token."""
    replicas = tuple(
        ReplicaStats(
            name,
            residency=draw(st.sampled_from(["resident", "warm"])),
            weights_bytes=draw(BYTES),
            kv_live_bytes=draw(BYTES),
            kv_cached_bytes=draw(BYTES),
        )
        for name in draw(st.sets(st.sampled_from(REPLICAS)))
    )
    in_blocks = sum(each.kv_live_bytes + each.kv_cached_bytes for each in replicas)
    stats = WorkerStats(replicas, kv_bytes=in_blocks + draw(BYTES), ready_bytes=draw(BYTES))
    return WorkerStatus(worker_id, "cpu", draw(BYTES), stats, 0.0)


@given(devices(), st.tuples(*map(workers, WORKERS)))
def test_promises_sum_to_the_budget_and_what_is_used_is_the_workers_own(
    device: DeviceStatus, there: tuple[WorkerStatus, ...]
) -> None:
    found = segments(device, there)
    assert sum(each["promised_bytes"] for each in found.values()) == device.budget_bytes
    assert found[FREE]["promised_bytes"] >= 0
    assert {name: each["promised_bytes"] for name, each in found.items() if name in device.owners} == dict(
        device.owners
    )
    used = {name: each["used_bytes"] for name, each in found.items() if name.startswith("weights:")}
    for name, num_bytes in used.items():
        assert num_bytes == sum(
            replica.weights_bytes
            for worker in there
            for replica in worker.stats.replicas
            if f"weights:{replica.replica_id}" == name
        )
    said = sum(replica.weights_bytes for worker in there for replica in worker.stats.replicas)
    assert sum(used.values()) == said
    for worker in there:
        kv = found[f"kv:{worker.worker_id}"]
        assert kv["used_bytes"] == worker.stats.kv_bytes
        parts = ("in_use_bytes", "cached_bytes", "parked_bytes", "unused_bytes")
        assert sum(kv[part] for part in parts) == kv["used_bytes"]
        assert min(kv[part] for part in parts) >= 0
        asleep = [each for each in worker.stats.replicas if each.residency == "warm"]
        assert kv["parked_bytes"] == sum(each.kv_live_bytes for each in asleep)
