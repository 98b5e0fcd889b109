"""Admission to one device: who is let in, who is refused, and who is served next.

The queue, its prediction and what a worker is given meet here; the manager and the capacity simulator bring the
requests, and tell what the workers have.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection
from typing import Generic, TypeVar

from memory_manager.policy.claim import Obstacle, RequestClaim
from memory_manager.policy.device_queue import DeviceQueue, QueuePolicy
from memory_manager.policy.fairness import ServiceCounters
from memory_manager.policy.prediction import Ahead, PredictionError, first_token_s
from memory_manager.policy.worker_load import HeldBacklog, HeldRequest, ModelUse, WorkerLoad

__all__ = ["DeviceAdmission"]

Q = TypeVar("Q", bound=RequestClaim)

_LATELY_S = 30.0
_ROOM_CAUTION = 12.0
"""Part of its time for the first token, one in so many, that a request may be expected to wait for others to end, if
it is to be refused rather than late. When they end, nobody knows; and under too much load those that can begin at
once are enough: whoever waits beside them only makes them late."""


class DeviceAdmission(Generic[Q]):
    """Admission to the models of one device.

    Args:
        policy: the order in which waiting requests are served. Under any but ``SLO`` nobody is refused or put behind
            others for a target.

    Attributes:
        counters: of each tenant's service.
        queue: those that wait.
    """

    def __init__(self, policy: QueuePolicy) -> None:
        self._policy = policy
        self.counters = ServiceCounters()
        self.queue: DeviceQueue[Q] = DeviceQueue(policy, self.counters)
        self._last_of: dict[
            tuple[str, int], float
        ] = {}  # last arrivals by tenant and priority, in their order
        self._errors: defaultdict[int, PredictionError] = defaultdict(PredictionError)  # by priority

    def arrive(
        self,
        request: Q,
        use: Callable[[str], ModelUse],
        load: WorkerLoad | None,
        now_s: float,
        *,
        comes_in_s: float = 0.0,
        step_left_s: float = 0.0,
    ) -> bool:
        """Takes a request into the queue, or refuses it; fills in what is expected of it.

        Args:
            use: of each model of the device, by its name.
            load: of the worker that would have it; None if its model is on none.
            comes_in_s: seconds until its model is there.
            step_left_s: seconds that the running step of that worker still takes.

        Returns:
            False if it is refused, because it is not expected to begin in time and is to be refused then.
        """
        self.note_late(now_s)
        model = use(request.model)
        newcomer = HeldRequest(request, model)
        own_s = model.costs.seconds(0, request.num_to_compute)
        request.expected_s = own_s + model.mean_output * model.costs.seconds(1, 0) * request.num_choices
        request.due_s = request.deadline_s - own_s
        ahead = self.queue.ahead_of(request, now_s)
        waits, num_ends, end_interval_s, prefill_s = False, 0, 0.0, own_s
        if load is not None:
            own = ahead.get(request.model)
            held_ahead = {name: HeldBacklog(each, use(name)) for name, each in ahead.items()}
            waits = own is not None and own.num_waiting_for_room > 0
            if waits or load.waits_for_room(newcomer, held_ahead):
                waits, end_interval_s = True, load.end_interval_s()
                num_ends = sum(each.num_requests for each in ahead.values()) + 1
                held_ahead = {}  # their prompts are computed while it waits
            prefill_s = load.prefill_s(newcomer, held_ahead)
        what_is_ahead = Ahead(comes_in_s, num_ends, end_interval_s, step_left_s, prefill_s)
        predicted_s = now_s - request.at_s + first_token_s(what_is_ahead)
        request.predicted_s, request.waits_for_room = predicted_s, waits
        if self._policy is QueuePolicy.SLO:
            left_s = request.deadline_s - request.at_s
            errors = self._errors[request.priority]
            is_unlikely = left_s < errors.cautious_s(predicted_s, waits_for_room=waits)
            if is_unlikely and predicted_s <= left_s:
                errors.note_kept_out(waits_for_room=waits)
            if request.refuses_miss and (is_unlikely or left_s < _ROOM_CAUTION * num_ends * end_interval_s):
                return False
            if is_unlikely:
                request.due_s = -math.inf
        self._last_of.pop((request.tenant, request.priority), None)
        self._last_of[request.tenant, request.priority] = now_s
        self.queue.add(request, now_s)
        return True

    def most_served(self, now_s: float) -> dict[int, str]:
        """By priority, the tenant that has had most for its weight, of several that have sent requests of that
        priority or a higher one lately."""
        while self._last_of and next(iter(self._last_of.values())) < now_s - _LATELY_S:
            del self._last_of[next(iter(self._last_of))]
        found: dict[int, str] = {}
        tenants: set[str] = set()
        most_s, most = -math.inf, ""
        for tenant, priority in sorted(self._last_of, key=lambda each: -each[1]):
            tenants.add(tenant)
            if (service_s := self.counters.of(tenant)) > most_s:
                most_s, most = service_s, tenant
            if len(tenants) > 1:
                found[priority] = most
        return found

    def likely_s(self, request: Q) -> float:
        """Seconds from its arrival to its first token, as predicted then and by how far predictions were off."""
        return self._errors[request.priority].likely_s(
            request.predicted_s, waits_for_room=request.waits_for_room
        )

    def next(
        self, models: Collection[str], obstacle: Callable[[Q], Obstacle | None], now_s: float
    ) -> Q | None:
        """Takes the request out of the queue that is served next; see ``DeviceQueue.next``."""
        self.note_late(now_s)
        request = self.queue.next(models, obstacle, now_s)
        if request is not None:
            self.queue.grant(request)
        return request

    def note_late(self, now_s: float) -> None:
        """Puts those behind that can no longer begin in time: they were predicted wrongly."""
        for each in self.queue.note_late(now_s):
            self._note(each, now_s - each.at_s)
            each.due_s = -math.inf

    def note_first(self, request: Q, now_s: float) -> None:
        """Notes the first token of a request that was granted."""
        self._note(request, now_s - request.at_s)

    def _note(self, request: Q, seconds: float) -> None:
        if request.due_s > -math.inf:
            self._errors[request.priority].note(
                request.predicted_s, seconds, waits_for_room=request.waits_for_room
            )
