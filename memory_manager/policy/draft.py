"""The draft of a plan: what its steps share."""

from __future__ import annotations

import math

from memory_manager.config import PlannerConfig
from memory_manager.policy import standings
from memory_manager.policy.chooser import Chooser, Exchange, Lack
from memory_manager.policy.device_room import DeviceRoom, footprint_bytes
from memory_manager.policy.plan_types import (
    Action,
    Drain,
    Figures,
    PlannerState,
    ReplicaView,
    Sleep,
    Unload,
    WorkerView,
)
from memory_manager.policy.residency import ON_DEVICE, Residency

__all__ = ["PlanDraft"]


class PlanDraft:
    """A plan in the making: what it follows from, and what has been decided of it.

    Attributes:
        actions: those to begin now, but for KV leases.
        next_at_s: when time alone will change the plan.
        leaving: ids of replicas that leave their device or their worker.
        exchanges: by deployment, what decided that others make room for it.
        by_deployment: its replicas, but for those that are retired.
        hosts: by deployment, the workers that host, or are about to host, a replica of it; each hosts at most one.
        rooms: by device.
    """

    def __init__(self, state: PlannerState, now_s: float, config: PlannerConfig) -> None:
        self.now_s = now_s
        self.config = config
        self.state = state
        self.actions: list[Action] = []
        self.next_at_s = state.next_due_s
        self.leaving: set[str] = set()
        self.deployments = {each.name: each for each in state.deployments}
        self.workers = {each.worker_id: each for each in state.workers}
        self.by_deployment: dict[str, list[ReplicaView]] = {each.name: [] for each in state.deployments}
        self._by_device: dict[str, list[ReplicaView]] = {each.name: [] for each in state.devices}
        self.hosts: dict[str, set[str]] = {each.name: set() for each in state.deployments}
        for replica in state.replicas:
            if not replica.retired:
                self.by_deployment[replica.deployment].append(replica)
            if replica.worker_id is not None:
                self._by_device[self.workers[replica.worker_id].device].append(replica)
                if replica.residency in ON_DEVICE and not replica.retired:
                    self.hosts[replica.deployment].add(replica.worker_id)
        self.replicas = {each.replica_id: each for each in state.replicas}
        self._num_away = sum(
            each.demand is not None
            and each.policy.enabled
            and not self.hosts[each.name]
            and max(each.demand.latest_s, default=-math.inf) >= now_s
            for each in state.deployments
        )
        self._choosers: dict[str, Chooser] = {}  # by device
        self.exchanges: dict[str, Exchange] = {}
        self.rooms = {
            device.name: DeviceRoom(
                device,
                [each for each in state.workers if each.device == device.name],
                self._by_device[device.name],
                config,
            )
            for device in state.devices
        }

    def at(self, when_s: float) -> bool:
        """Whether a time has come; if not, the next plan is due then at the latest."""
        if when_s <= self.now_s:
            return True
        self.next_at_s = min(self.next_at_s, when_s)
        return False

    def leave(
        self,
        replica: ReplicaView,
        reason: str,
        figures: Figures | None = None,
        room_for: str = "",
        max_drain_s: float = 0.0,
        exchange: Exchange | None = None,
    ) -> None:
        """Counts the replica as leaving, and takes the next step towards that. Its running requests have
        ``max_drain_s`` to finish; what runs then is parked, or moved if the worker forgets the replica."""
        figures = {**self.figures_of(replica), **(figures or {})}
        self.leaving.add(replica.replica_id)
        self.room_of(replica).leave(replica)
        if (chooser := self._choosers.get(self.worker_of(replica).device)) is not None:
            chooser.take_away(replica.replica_id)
        if replica.in_flight or not self.at(replica.retry_at_s):
            return
        since_s = replica.since_s if replica.residency is Residency.DRAINING else self.now_s
        drained = replica.num_active == 0 or self.at(since_s + max_drain_s)
        if drained and (replica.retired or not replica.can_sleep or self.loses_worker(replica)):
            self.actions.append(Unload(replica.replica_id, reason, figures, room_for, exchange))
        elif drained:
            self.actions.append(Sleep(replica.replica_id, reason, figures, room_for, exchange))
        elif replica.residency is Residency.RESIDENT:
            self.actions.append(Drain(replica.replica_id, reason, figures, exchange))

    def figures_of(self, replica: ReplicaView) -> Figures:
        """Figures of a replica that leaves."""
        return {
            "freed_bytes": self.room_of(replica).freed_bytes((replica.replica_id,)),
            "num_active": replica.num_active,
            "resident_s": self.now_s - replica.since_s,
            "unused_s": self.now_s - max(replica.last_used_s, replica.since_s),
        }

    def loses_worker(self, replica: ReplicaView) -> bool:
        return replica.worker_id is not None and self.worker_of(replica).leaves_by_s is not None

    def worker_of(self, replica: ReplicaView) -> WorkerView:
        assert replica.worker_id is not None, "its worker knows the replica"
        return self.workers[replica.worker_id]

    def room_of(self, replica: ReplicaView) -> DeviceRoom:
        return self.rooms[self.worker_of(replica).device]

    def chooser(self, device: str) -> Chooser:
        """The chooser of a device, made once it is asked for."""
        if device not in self._choosers:
            self._choosers[device] = Chooser(
                [
                    standings.of_resident(
                        replica,
                        self.deployments[replica.deployment],
                        footprint_bytes(replica),
                        len(self.hosts[replica.deployment]),
                        may_leave=self._may_leave(replica),
                        now_s=self.now_s,
                        config=self.config,
                    )
                    for replica in self._by_device[device]
                    if replica.residency in ON_DEVICE and not replica.retired
                ],
                self.config,
                num_away=-(-self._num_away // len(self.rooms)),
                is_short_of_kv=self.rooms[device].is_short_of_kv(self.now_s),
            )
        return self._choosers[device]

    def _may_leave(self, replica: ReplicaView) -> bool:
        """Whether the replica may be asked to make room, if it is worth it."""
        if replica.in_flight or replica.residency not in (Residency.RESIDENT, Residency.DRAINING):
            return False
        deployment = self.deployments[replica.deployment]
        if (deployment.policy.pinned and not deployment.held) or replica.replica_id in self.leaving:
            return False
        return self.at(replica.retry_at_s)

    def freeing(self, room: DeviceRoom, num_bytes: int) -> Lack:
        """The lack of so many bytes on a device, as others leave."""
        return lambda names: num_bytes - room.freed_bytes(names)
