"""The running sums of one device while a plan is made."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from memory_manager.config import PlannerConfig
from memory_manager.kv_spec import PAGE_BYTES
from memory_manager.policy.kv_floor import KVFloor
from memory_manager.policy.plan_types import DeviceView, ReplicaView, SetKVLease, WorkerView
from memory_manager.policy.residency import ON_DEVICE

__all__ = ["DeviceRoom", "footprint_bytes"]


def footprint_bytes(replica: ReplicaView) -> int:
    """Bytes that a replica on a device alone takes there, and gives up if it leaves: its weights, and its own KV
    guarantee. What is kept for all models of its worker together is nobody's."""
    return _weights_freed_bytes(replica) + replica.kv_guarantee_bytes


def _weights_freed_bytes(replica: ReplicaView) -> int:
    """Bytes of its lease that a replica gives up if it leaves its device."""
    is_forgotten = replica.retired or not replica.can_sleep
    return replica.lease_bytes - (0 if is_forgotten else min(replica.kept_bytes, replica.lease_bytes))


class DeviceRoom:
    """The room on a device: what fits now, and what will fit once all that leaves has left.

    A replica takes its weights, and by what the least KV of its worker grows (``kv_floor``); KV above that is
    promised to nobody and gives way. So what a replica takes, or frees, depends on who else is there.

    Attributes:
        others_bytes: what is left to other processes.
        room_bytes: the budget less that and what cannot be moved.
    """

    def __init__(
        self,
        device: DeviceView,
        workers: Sequence[WorkerView],
        replicas: Sequence[ReplicaView],
        config: PlannerConfig,
    ) -> None:
        """Starts the sums. ``replicas`` are all replicas that the device's workers know."""
        self.others_bytes = device.others_bytes
        self.room_bytes = device.budget_bytes - device.fixed_bytes - device.others_bytes
        self._workers = workers
        self._kv_short_s = config.kv_short_s
        self._weights_freed_bytes = {each.replica_id: _weights_freed_bytes(each) for each in replicas}
        self._weights_bytes = sum([each.lease_bytes for each in replicas])
        self._now = {each.worker_id: self._new_floor(each, config) for each in workers}
        self._after = {each.worker_id: self._new_floor(each, config) for each in workers}
        # KV that comes with a replica, of workers whose KV does not move afterwards.
        self._kv_brought_bytes = {each.worker_id: 0 for each in workers}
        for replica in replicas:
            if replica.residency in ON_DEVICE and replica.worker_id is not None:
                self._now[replica.worker_id].add(replica.replica_id, replica)
                self._after[replica.worker_id].add(replica.replica_id, replica)
        self._weights_after_bytes = self._weights_bytes
        self._free_bytes = self.room_bytes - self._weights_bytes - sum(w.kv_lease_bytes for w in workers)
        self._awaits_room = False

    @staticmethod
    def _new_floor(worker: WorkerView, config: PlannerConfig) -> KVFloor:
        return KVFloor(config.kv_base_bytes, is_elastic=worker.elastic_kv)

    @property
    def spare_bytes(self) -> int:
        """Room once all that leaves has left, and all that waits for that room has come."""
        return self.room_bytes - self._weights_after_bytes - _total_bytes(self._after)

    @property
    def kv_short_bytes(self) -> int:
        """KV bytes that sequences wait for and nobody frees yet. 0 while a replica waits for room for its
        weights: that goes first."""
        if self._awaits_room:
            return 0
        wanted_bytes = sum(
            max(0, each.kv_wanted_bytes - self._now[each.worker_id].num_bytes)
            for each in self._workers
            if each.elastic_kv
        )
        return max(0, wanted_bytes - max(0, self.spare_bytes))

    def is_short_of_kv(self, now_s: float) -> bool:
        """Whether sequences wait for KV, or did a short while ago."""
        return any(
            each.elastic_kv and now_s < each.kv_wanted_at_s + self._kv_short_s for each in self._workers
        )

    @property
    def kv_wanted_since_s(self) -> float:
        """Since when sequences have waited for KV; ``inf`` if none waits."""
        return min(
            (each.kv_wanted_since_s for each in self._workers if each.kv_wanted_bytes and each.elastic_kv),
            default=math.inf,
        )

    def need_bytes(self, worker: WorkerView, replica: ReplicaView, weights_bytes: int) -> int:
        """Bytes that a replica would take that comes to this worker once all that leaves has left.

        Args:
            weights_bytes: of its weights, those that are still to be leased.
        """
        return weights_bytes + self._after[worker.worker_id].growth_bytes(replica)

    def fits_now(self, worker: WorkerView, replica: ReplicaView, weights_bytes: int) -> bool:
        """Whether a replica can come to this worker before anything leaves, and stay."""
        now_bytes = (
            self._weights_bytes + _total_bytes(self._now) + self._now[worker.worker_id].growth_bytes(replica)
        )
        return (
            now_bytes + weights_bytes <= self.room_bytes
            and self.need_bytes(worker, replica, weights_bytes) <= self.spare_bytes
        )

    def shortage_bytes(
        self,
        worker: WorkerView,
        replica: ReplicaView,
        weights_bytes: int,
        leaving: Collection[str],
    ) -> int:
        """Bytes that a replica which comes to this worker would still lack if those of these ids left as well; 0 or
        less if none."""
        after_bytes = (
            self._weights_after_bytes
            + weights_bytes
            - sum(map(self._weights_freed_bytes.__getitem__, leaving))
        )
        for worker_id, floor in self._after.items():
            after_bytes += floor.bytes_if(leaving, replica if worker_id == worker.worker_id else None)
        return after_bytes - self.room_bytes

    def freed_bytes(self, leaving: Collection[str]) -> int:
        """Bytes that those of these ids would free if they left as well: their weights, and by what the least KV of
        their workers shrinks."""
        kept_bytes = sum(floor.bytes_if(leaving) for floor in self._after.values())
        return (
            sum(map(self._weights_freed_bytes.__getitem__, leaving)) + _total_bytes(self._after) - kept_bytes
        )

    def leave(self, replica: ReplicaView) -> None:
        assert replica.worker_id is not None, "its worker knows the replica"
        self._weights_after_bytes -= self._weights_freed_bytes[replica.replica_id]
        self._after[replica.worker_id].remove(replica.replica_id)

    def await_room(self, worker: WorkerView, replica: ReplicaView, weights_bytes: int) -> None:
        """Counts a replica that comes to this worker once others have left; KV must not grow into what they free."""
        self._weights_after_bytes += weights_bytes
        self._after[worker.worker_id].add(replica.replica_id, replica)
        self._awaits_room = True

    def bring(self, worker: WorkerView, replica: ReplicaView, weights_bytes: int) -> bool:
        """Counts a replica that comes as soon as the ledger has its weights, and its KV if that cannot follow
        later; False if KV of others must shrink first."""
        worker_id = worker.worker_id
        self._weights_bytes += weights_bytes
        self._weights_after_bytes += weights_bytes
        self._now[worker_id].add(replica.replica_id, replica)
        self._after[worker_id].add(replica.replica_id, replica)
        kv_bytes = 0
        if not worker.elastic_kv:
            leased_bytes = worker.kv_lease_bytes + self._kv_brought_bytes[worker_id]
            kv_bytes = max(0, self._now[worker_id].num_bytes - leased_bytes)
        if weights_bytes + kv_bytes > self._free_bytes:
            return False
        self._free_bytes -= weights_bytes + kv_bytes
        self._kv_brought_bytes[worker_id] += kv_bytes
        return True

    def kv_leases(self) -> list[SetKVLease]:
        """The KV leases that change: each worker gets its floor, and the rest is divided equally between the
        workers that host a replica and whose KV is elastic.

        A lease grows only into what the ledger has free at this moment; the rest follows when another
        worker's lease has shrunk.
        """
        if not self._workers:
            return []
        spare_bytes = self.room_bytes - self._weights_bytes - _total_bytes(self._now)
        elastic = [each.worker_id for each in self._workers if each.elastic_kv]
        sharing = [worker_id for worker_id in elastic if self._now[worker_id].num_replicas] or elastic
        share_bytes = max(0, spare_bytes) // max(1, len(sharing)) // PAGE_BYTES * PAGE_BYTES
        leases = []
        for worker in self._workers:
            floor_bytes = target_bytes = self._now[worker.worker_id].num_bytes
            if worker.worker_id in sharing:
                target_bytes += share_bytes
            if self._awaits_room:
                target_bytes = min(target_bytes, max(worker.kv_target_bytes, floor_bytes))
            self._free_bytes += self._kv_brought_bytes[worker.worker_id]
            growth_bytes = max(0, min(target_bytes - worker.kv_lease_bytes, self._free_bytes))
            self._free_bytes -= growth_bytes
            target_bytes = min(target_bytes, worker.kv_lease_bytes + growth_bytes)
            if target_bytes != worker.kv_target_bytes:
                leases.append(SetKVLease(worker.worker_id, target_bytes))
        return leases


def _total_bytes(floors: dict[str, KVFloor]) -> int:
    return sum(each.num_bytes for each in floors.values())
