"""The running sums of one device while a plan is made."""

from __future__ import annotations

import math
from collections.abc import Sequence

from memory_manager.config import PlannerConfig
from memory_manager.kv_spec import PAGE_BYTES
from memory_manager.policy.eviction import footprint_bytes
from memory_manager.policy.plan_types import DeviceView, ReplicaView, SetKVLease, WorkerView
from memory_manager.policy.residency import ON_DEVICE

__all__ = ["DeviceRoom"]


class DeviceRoom:
    """The room on a device: what fits now, and what will fit once all that leaves has left.

    A replica's footprint is its weights and its KV guarantee; KV above the guarantees is promised to nobody
    and gives way.

    Attributes:
        room_bytes: the budget less what cannot be moved and what is left to other processes.
        closed: whether a want waits for a minimum residency to pass; no want behind it may evict here
            meanwhile.
    """

    def __init__(
        self,
        device: DeviceView,
        workers: Sequence[WorkerView],
        replicas: Sequence[ReplicaView],
        config: PlannerConfig,
    ) -> None:
        """Starts the sums. ``replicas`` are all replicas that the device's workers know."""
        self.room_bytes = device.budget_bytes - device.fixed_bytes - device.others_bytes
        self.closed = False
        self._workers = workers
        self._weights_bytes = sum(each.lease_bytes for each in replicas)
        self._kv_floor_bytes = {each.worker_id: config.kv_base_bytes for each in workers}
        self._num_hosted = {each.worker_id: 0 for each in workers}
        # KV that comes with a replica, of workers whose KV does not move afterwards.
        self._kv_brought_bytes = {each.worker_id: 0 for each in workers}
        for replica in replicas:
            if replica.residency in ON_DEVICE and replica.worker_id is not None:
                self._kv_floor_bytes[replica.worker_id] += replica.kv_guarantee_bytes
                self._num_hosted[replica.worker_id] += 1
        self._now_bytes = sum(map(footprint_bytes, replicas)) + len(workers) * config.kv_base_bytes
        self._after_bytes = self._now_bytes
        self._free_bytes = self.room_bytes - self._weights_bytes - sum(w.kv_lease_bytes for w in workers)
        self._awaits_room = False

    @property
    def spare_bytes(self) -> int:
        """Room once all that leaves has left, and all that waits for that room has come."""
        return self.room_bytes - self._after_bytes

    @property
    def kv_short_bytes(self) -> int:
        """KV bytes that sequences wait for and nobody frees yet. 0 while a replica waits for room for its
        weights: that goes first."""
        if self._awaits_room:
            return 0
        wanted_bytes = sum(
            max(0, each.kv_wanted_bytes - self._kv_floor_bytes[each.worker_id])
            for each in self._workers
            if each.elastic_kv
        )
        return max(0, wanted_bytes - max(0, self.spare_bytes))

    @property
    def kv_wanted_since_s(self) -> float:
        """Since when sequences have waited for KV; ``inf`` if none waits."""
        return min(
            (each.kv_wanted_since_s for each in self._workers if each.kv_wanted_bytes and each.elastic_kv),
            default=math.inf,
        )

    def fits_now(self, need_bytes: int) -> bool:
        return self._now_bytes + need_bytes <= self.room_bytes and need_bytes <= self.spare_bytes

    def leave(self, replica: ReplicaView) -> None:
        self._after_bytes -= footprint_bytes(replica)

    def await_room(self, need_bytes: int) -> None:
        """Counts a replica of this footprint that comes once others have left; KV must not grow into what
        they free."""
        self._after_bytes += need_bytes
        self._awaits_room = True

    def bring(self, worker: WorkerView, weights_bytes: int, kv_guarantee_bytes: int) -> bool:
        """Counts a replica that comes as soon as the ledger has its weights, and its KV if that cannot follow
        later; False if KV of others must shrink first."""
        worker_id = worker.worker_id
        self._now_bytes += weights_bytes + kv_guarantee_bytes
        self._after_bytes += weights_bytes + kv_guarantee_bytes
        self._weights_bytes += weights_bytes
        self._kv_floor_bytes[worker_id] += kv_guarantee_bytes
        self._num_hosted[worker_id] += 1
        kv_bytes = 0
        if not worker.elastic_kv:
            leased_bytes = worker.kv_lease_bytes + self._kv_brought_bytes[worker_id]
            kv_bytes = max(0, self._kv_floor_bytes[worker_id] - leased_bytes)
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
        spare_bytes = self.room_bytes - self._weights_bytes - sum(self._kv_floor_bytes.values())
        elastic = [each.worker_id for each in self._workers if each.elastic_kv]
        sharing = [worker_id for worker_id in elastic if self._num_hosted[worker_id]] or elastic
        share_bytes = max(0, spare_bytes) // max(1, len(sharing)) // PAGE_BYTES * PAGE_BYTES
        leases = []
        for worker in self._workers:
            target_bytes = self._kv_floor_bytes[worker.worker_id]
            if worker.worker_id in sharing:
                target_bytes += share_bytes
            if self._awaits_room:
                floor_bytes = self._kv_floor_bytes[worker.worker_id]
                target_bytes = min(target_bytes, max(worker.kv_target_bytes, floor_bytes))
            self._free_bytes += self._kv_brought_bytes[worker.worker_id]
            growth_bytes = max(0, min(target_bytes - worker.kv_lease_bytes, self._free_bytes))
            self._free_bytes -= growth_bytes
            target_bytes = min(target_bytes, worker.kv_lease_bytes + growth_bytes)
            if target_bytes != worker.kv_target_bytes:
                leases.append(SetKVLease(worker.worker_id, target_bytes))
        return leases
