"""The one place where requests wait for any model of a device, and the order in which they leave it.

Nothing here reads a clock: who asks gives the time. The same queue serves in the manager and in the capacity
simulator.
"""

from __future__ import annotations

import enum
from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterator
from typing import Generic, NamedTuple, TypeVar

from memory_manager.policy.claim import Backlog, Obstacle, RequestClaim
from memory_manager.policy.fairness import ServiceCounters

__all__ = ["DeviceQueue", "QueuePolicy"]

_GRANTS_TO_A_LATE_ONE = 32
_TURNS_PASSED_OVER = 32


class QueuePolicy(enum.Enum):
    """The order in which waiting requests are served."""

    FCFS = "fcfs"  # first come, first served
    SJF = "sjf"  # the one first that is expected to take least
    VTC = "vtc"  # the tenant first that has had least for its weight
    SLO = "slo"  # by priority, then as VTC, then those in time first, by what is due first


Q = TypeVar("Q", bound=RequestClaim)


class _Group(NamedTuple):
    """Requests that one figure alone orders among themselves, by what they have in common."""

    model: str
    tenant: str
    priority: int
    is_late: bool


class _Place(NamedTuple, Generic[Q]):
    """A request's place in its group; sorts before the figure's next, and of equals by arrival."""

    figure: float
    arrival: int
    request: Q


class DeviceQueue(Generic[Q]):
    """Requests that wait for models of one device.

    A request is late once it can no longer begin in time (``RequestClaim.due_s``). Under ``SLO`` it waits as best
    effort does, whatever its priority, and behind those of its tenant that are in time, so that under too much load
    some meet their targets and not everybody is late. Another tenant gains nothing by that: their turns go by what
    each has had. Of 32 grants one goes to the late one that came first. If there is no room for that one, it is
    passed over, and after 32 such turns nobody goes before it whom what it lacks stops too, so that none starves.

    Args:
        counters: of the device; charged by whoever grants.
    """

    def __init__(self, policy: QueuePolicy, counters: ServiceCounters) -> None:
        self._policy = policy
        self._counters = counters
        self._waiting: dict[Q, tuple[_Group, _Place[Q], Backlog]] = {}
        self._groups: dict[str, dict[_Group, list[_Place[Q]]]] = {}  # in ascending order, by model
        self._backlogs: dict[_Group, Backlog] = {}
        self._due: list[_Place[Q]] = []  # those in time, in ascending order
        self._longest: Q | None = None  # the late one that came first, of those looked at last
        self._num_since_late = 0  # grants since one to such a one

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Q]:
        """In no particular order."""
        return iter(self._waiting)

    def __contains__(self, request: object) -> bool:
        return request in self._waiting

    def add(self, request: Q, now_s: float) -> None:
        """Takes a request in; neither what it is promised nor what it is expected to take changes while it waits."""
        self._counters.arrive(request.tenant)
        is_late = self._is_late(request, now_s)
        self._place(request, is_late)
        if not is_late:
            insort(self._due, _Place(request.due_s, request.arrival, request))

    def discard(self, request: Q) -> None:
        """Takes a request out that is not served; does nothing if it is not there."""
        if request not in self._waiting:
            return
        group = self._displace(request)
        if not group.is_late:
            _remove(self._due, _Place(request.due_s, request.arrival, request))
        self._counters.leave(request.tenant)

    def grant(self, request: Q) -> None:
        """Takes a request out that is served now."""
        self._num_since_late = 0 if request is self._longest else self._num_since_late + 1
        self.discard(request)

    def next(
        self, models: Collection[str], obstacle: Callable[[Q], Obstacle | None], now_s: float
    ) -> Q | None:
        """The request that is served next, of those for these models; None if there is none.

        Args:
            obstacle: what keeps a request from beginning now, if anything does. If something keeps the first from it,
                nobody goes before it but those whom it does not stop.
        """
        heads = [
            (self._rank(group, places[0]), places[0].request, group.is_late)
            for model in models
            for group, places in self._groups.get(model, {}).items()
        ]
        if not heads:
            return None
        late = (request for _, request, is_late in heads if is_late)
        self._longest = longest = min(late, key=lambda each: each.arrival, default=None)
        stopped: list[tuple[Obstacle, Q]] = []
        if longest is not None and self._num_since_late >= _GRANTS_TO_A_LATE_ONE - 1:
            if (found := obstacle(longest)) is None:
                return longest
            if self._num_since_late >= _TURNS_PASSED_OVER * _GRANTS_TO_A_LATE_ONE - 1:
                stopped.append((found, longest))
        for _, request, _ in sorted(heads, key=lambda head: head[0]):
            if not any(each.stops(other, request) for each, other in stopped):
                found = obstacle(request)
                if found is None:
                    return request
                stopped.append((found, request))
        return None

    def ahead_of(self, request: Q, now_s: float) -> dict[str, Backlog]:
        """Returns those that are to be served before a request that comes now, by the models that they are for."""
        own = self._group_of(request, self._is_late(request, now_s))
        place = self._place_in(own, request)
        rank = self._rank_of_group(own)
        ahead: dict[str, Backlog] = {}
        for model, groups in self._groups.items():
            before = Backlog()
            for group, places in groups.items():
                group_rank = self._rank_of_group(group)
                if group_rank > rank:
                    continue
                before.add(self._backlogs[group])
                if group_rank == rank:  # mostly it comes last
                    for each in places[bisect_left(places, place) :]:
                        before.add(self._waiting[each.request][2], -1)
            if before.num_requests:
                ahead[model] = before
        return ahead

    def in_order(self, now_s: float) -> list[tuple[Q, bool]]:
        """Returns all in the order in which they would be served now, whatever models they are for, and with each
        whether it is late. To look changes nothing."""
        ranked = []
        for request in self._waiting:
            is_late = self._is_late(request, now_s)
            group = self._group_of(request, is_late)
            ranked.append((self._rank(group, self._place_in(group, request)), request, is_late))
        return [(request, is_late) for _, request, is_late in sorted(ranked, key=lambda each: each[0])]

    def note_late(self, now_s: float) -> list[Q]:
        """Puts those that can no longer begin in time behind those that can, and returns them."""
        if self._policy is not QueuePolicy.SLO:
            return []
        num = bisect_left(self._due, now_s, key=lambda place: place.figure)
        late = [place.request for place in self._due[:num]]
        del self._due[:num]
        for request in late:
            self._displace(request)
            self._place(request, is_late=True)
        return late

    def _is_late(self, request: Q, now_s: float) -> bool:
        return self._policy is QueuePolicy.SLO and request.due_s < now_s

    def _place(self, request: Q, is_late: bool) -> None:
        group = self._group_of(request, is_late)
        place = self._place_in(group, request)
        backlog = Backlog.of(request)
        self._waiting[request] = group, place, backlog
        self._backlogs.setdefault(group, Backlog()).add(backlog)
        insort(self._groups.setdefault(group.model, {}).setdefault(group, []), place)

    def _displace(self, request: Q) -> _Group:
        group, place, backlog = self._waiting.pop(request)
        groups = self._groups[group.model]
        _remove(groups[group], place)
        self._backlogs[group].add(backlog, -1)
        if not groups[group]:
            del groups[group], self._backlogs[group]
            if not groups:
                del self._groups[group.model]
        return group

    def _group_of(self, request: Q, is_late: bool) -> _Group:
        match self._policy:
            case QueuePolicy.FCFS | QueuePolicy.SJF:
                return _Group(request.model, "", 0, False)
            case QueuePolicy.VTC:
                return _Group(request.model, request.tenant, 0, False)
        return _Group(request.model, request.tenant, request.priority, is_late)

    def _place_in(self, group: _Group, request: Q) -> _Place[Q]:
        figure = 0.0
        if self._policy is QueuePolicy.SJF:
            figure = request.expected_s
        elif self._policy is QueuePolicy.SLO and not group.is_late:
            figure = request.due_s
        return _Place(figure, request.arrival, request)

    def _rank_of_group(self, group: _Group) -> tuple[float, ...]:
        """Sort key of groups; those of equals are served as if they were one."""
        match self._policy:
            case QueuePolicy.FCFS | QueuePolicy.SJF:
                return ()
            case QueuePolicy.VTC:
                return (self._counters.of(group.tenant),)
        priority = min(group.priority, 0) if group.is_late else group.priority
        return (-priority, self._counters.of(group.tenant), group.is_late)

    def _rank(self, group: _Group, place: _Place[Q]) -> tuple[float, ...]:
        """Sort key of all."""
        return (*self._rank_of_group(group), place.figure, place.arrival)


def _remove(places: list[_Place[Q]], place: _Place[Q]) -> None:
    del places[bisect_left(places, place)]
