"""The one place where requests wait for any model of a device, and the order in which they leave it.

Nothing here reads a clock: who asks gives the time. The same queue serves in the manager and in the capacity
simulator.
"""

from __future__ import annotations

import enum
import heapq
from collections.abc import Callable, Collection, Iterator
from typing import Generic, NamedTuple, TypeVar

from memory_manager.policy.claim import RequestClaim
from memory_manager.policy.fairness import ServiceCounters

__all__ = ["DeviceQueue", "QueuePolicy"]

_GRANTS_TO_A_LATE_ONE = 32


class QueuePolicy(enum.Enum):
    """The order in which waiting requests are served."""

    FCFS = "fcfs"  # first come, first served
    SJF = "sjf"  # the one first that is expected to take least
    VTC = "vtc"  # the tenant first that has had least for its weight
    SLO = "slo"  # those in time first, by priority, then as VTC, then by what is due first


Q = TypeVar("Q", bound=RequestClaim)


class _Group(NamedTuple):
    """Requests that one figure alone orders among themselves, by what they have in common."""

    model: str
    tenant: str
    priority: int
    is_late: bool


class DeviceQueue(Generic[Q]):
    """Requests that wait for models of one device.

    A request is late once it can no longer begin in time (``RequestClaim.due_s``). Under ``SLO`` those are behind all
    that are in time, whatever their priority, so that under too much load some meet their targets and not everybody
    is late; of 32 grants one goes to the late one that came first, so that none starves.

    Args:
        counters: of the device; charged by whoever grants.
    """

    def __init__(self, policy: QueuePolicy, counters: ServiceCounters) -> None:
        self._policy = policy
        self._counters = counters
        self._waiting: dict[Q, _Group] = {}
        self._groups: dict[str, dict[_Group, list[tuple[float, int, Q]]]] = {}  # heaps, by model
        self._due: list[tuple[float, int, Q]] = []  # a heap of those in time
        self._num_since_late = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Q]:
        """In order of arrival."""
        return iter(self._waiting)

    def __contains__(self, request: object) -> bool:
        return request in self._waiting

    def add(self, request: Q, now_s: float) -> None:
        """Takes a request in."""
        self._counters.arrive(request.tenant)
        is_late = self._is_late(request, now_s)
        self._waiting[request] = group = self._group(request, is_late)
        self._place(request, group)
        if self._policy is QueuePolicy.SLO and not is_late:
            heapq.heappush(self._due, (request.due_s, request.arrival, request))

    def discard(self, request: Q) -> None:
        """Takes a request out that is not served; does nothing if it is not there."""
        if self._waiting.pop(request, None) is not None:
            self._counters.leave(request.tenant)

    def grant(self, request: Q) -> None:
        """Takes a request out that is served now."""
        is_late = self._waiting[request].is_late
        self._num_since_late = 0 if is_late else self._num_since_late + 1
        self.discard(request)

    def next(self, models: Collection[str], may_begin: Callable[[Q], bool], now_s: float) -> Q | None:
        """The request that is served next, of those for these models; None if there is none.

        Args:
            may_begin: whether there is room for a request now. If there is none for the first, nobody goes before it;
                but the late one whose turn has come holds up nobody.
        """
        heads = [
            (group, head)
            for model in models
            for group in list(self._groups.get(model, ()))
            if (head := self._head(group)) is not None
        ]
        if not heads:
            return None
        late = [head for group, head in heads if group.is_late]
        if late and self._num_since_late >= _GRANTS_TO_A_LATE_ONE - 1:
            longest = min(late, key=lambda each: each.arrival)
            if may_begin(longest):
                return longest
        first = min(heads, key=lambda each: self._rank(*each))[1]
        return first if may_begin(first) else None

    def ahead_of(self, request: Q, now_s: float) -> list[Q]:
        """Returns those that are to be served before a request that comes now, whatever models they are for."""
        rank = self._rank(self._group(request, self._is_late(request, now_s)), request)
        return [each for each, group in self._waiting.items() if self._rank(group, each) < rank]

    def in_order(self, now_s: float) -> list[tuple[Q, bool]]:
        """Returns all in the order in which they would be served now, whatever models they are for, and with each
        whether it is late. To look changes nothing."""
        found = [(each, self._is_late(each, now_s)) for each in self._waiting]
        return sorted(found, key=lambda each: self._rank(self._group(*each), each[0]))

    def has_in_time(self) -> bool:
        """Whether anybody waits who can still begin in time, as of the last ``note_late``."""
        return any(not group.is_late for group in self._waiting.values())

    def note_late(self, now_s: float) -> list[Q]:
        """Puts those that can no longer begin in time behind those that can, and returns them."""
        late = []
        while self._due and (self._due[0][0] < now_s or self._due[0][2] not in self._waiting):
            _, _, request = heapq.heappop(self._due)
            if request in self._waiting:
                self._waiting[request] = group = self._group(request, is_late=True)
                self._place(request, group)
                late.append(request)
        return late

    def _is_late(self, request: Q, now_s: float) -> bool:
        return self._policy is QueuePolicy.SLO and request.due_s < now_s

    def _place(self, request: Q, group: _Group) -> None:
        heap = self._groups.setdefault(group.model, {}).setdefault(group, [])
        heapq.heappush(heap, (self._place_in(group, request), request.arrival, request))

    def _head(self, group: _Group) -> Q | None:
        """The first of a group; a group that turns out to be empty is forgotten."""
        heap = self._groups[group.model][group]
        while heap and self._waiting.get(heap[0][2]) != group:
            heapq.heappop(heap)
        if heap:
            return heap[0][2]
        del self._groups[group.model][group]
        return None

    def _group(self, request: Q, is_late: bool) -> _Group:
        match self._policy:
            case QueuePolicy.FCFS | QueuePolicy.SJF:
                return _Group(request.model, "", 0, False)
            case QueuePolicy.VTC:
                return _Group(request.model, request.tenant, 0, False)
        return _Group(request.model, request.tenant, request.priority, is_late)

    def _place_in(self, group: _Group, request: Q) -> float:
        """Sort key within a group, before the arrival."""
        if self._policy is QueuePolicy.SJF:
            return request.expected_s
        return request.due_s if self._policy is QueuePolicy.SLO and not group.is_late else 0.0

    def _rank(self, group: _Group, request: Q) -> tuple[float, ...]:
        """Sort key of all."""
        place = self._place_in(group, request)
        match self._policy:
            case QueuePolicy.FCFS | QueuePolicy.SJF:
                return (place, request.arrival)
            case QueuePolicy.VTC:
                return (self._counters.of(request.tenant), request.arrival)
        return (group.is_late, -group.priority, self._counters.of(group.tenant), place, request.arrival)
