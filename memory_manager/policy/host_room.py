"""The running sums of the host tier while a plan is made: which loads leave a copy in host memory, and which
copies go for it."""

from __future__ import annotations

import enum
from collections import defaultdict
from collections.abc import Container

from memory_manager.policy.plan_types import CopyView, HostView, ReplicaView

__all__ = ["HostRoom", "Way"]


class Way(enum.Enum):
    """The way of a load from storage to its device."""

    COPY = enum.auto()  # by a copy in host memory, from which later wakes are quick
    FILE = (
        enum.auto()
    )  # from the packed file at once, in pieces; the replica is cold when it leaves its device
    LATER = enum.auto()  # by a copy, once others have gone


class HostRoom:
    """The room for copies of weights in a host's memory.

    No load waits for long or fails for want of it: if room cannot be made, the weights come from the file. A copy is
    the longer unused, the longer ago its model was used, or if it is resident, came: it has no need of the copy until
    it has left. So the copy of a model that never leaves goes before that of one that comes and goes.

    Attributes:
        dropped: the copies that are to go, once for each replica that holds one.
    """

    def __init__(self, host: HostView) -> None:
        self.dropped: list[CopyView] = []
        self._budget_bytes = host.budget_bytes
        self._free_bytes = host.free_bytes
        self._counted: dict[str, Way] = {}  # by artifact: its copy is there once
        holders: defaultdict[str, list[CopyView]] = defaultdict(list)
        for copy in host.copies:
            holders[copy.artifact_key].append(copy)
        movable = [each for each in holders.values() if all(copy.may_go or copy.is_going for copy in each)]
        # Of those that several replicas hold, the last use counts.
        movable.sort(key=lambda each: max((copy.unused_since_s, copy.replica_id) for copy in each))
        self._leaving_bytes = sum(
            each[0].num_bytes for each in movable if all(copy.is_going for copy in each)
        )
        self._movable = [each for each in movable if any(copy.may_go for copy in each)]

    def admit(self, replica: ReplicaView, kept: Container[str]) -> Way:
        """Counts a replica that is to be loaded; returns its way. ``kept`` are ids of replicas whose copies stay."""
        if replica.copy_bytes is None or replica.copy_bytes > self._budget_bytes:
            return Way.FILE
        if not replica.copy_bytes:
            return Way.COPY
        if replica.artifact_key in self._counted:
            return self._counted[replica.artifact_key]
        if not self._drop(replica.copy_bytes - self._free_bytes - self._leaving_bytes, kept):
            return Way.FILE
        way = Way.COPY if replica.copy_bytes <= self._free_bytes else Way.LATER
        self._counted[replica.artifact_key] = way
        self._free_bytes -= replica.copy_bytes
        return way

    def _drop(self, shortage_bytes: int, kept: Container[str]) -> bool:
        """Drops the copies that are longest unused; False, and nothing has changed, if all are too few."""
        chosen = []
        for copies in self._movable:
            if shortage_bytes > 0 and not any(each.replica_id in kept for each in copies):
                chosen.append(copies)
                shortage_bytes -= copies[0].num_bytes
        if shortage_bytes > 0:
            return False
        for copies in chosen:
            self._movable.remove(copies)
            self._leaving_bytes += copies[0].num_bytes
            self.dropped += (copy for copy in copies if copy.may_go)
        return True
