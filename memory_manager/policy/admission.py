"""Admission to one device: who is let in, who is refused, and who is served next.

The queue, its prediction and what a worker is given meet here; the manager and the capacity simulator bring the
requests, and tell what the workers have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Generic, TypeVar

from memory_manager.policy.claim import RequestClaim
from memory_manager.policy.device_queue import DeviceQueue, QueuePolicy
from memory_manager.policy.fairness import ServiceCounters
from memory_manager.policy.prediction import Ahead, GrantPace, PredictionError, first_token_s
from memory_manager.policy.worker_load import HeldRequest, WorkerLoad

__all__ = ["DeviceAdmission"]

Q = TypeVar("Q", bound=RequestClaim)


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
        self._pace = GrantPace()
        self._error = PredictionError()

    def arrive(
        self,
        request: Q,
        held: Callable[[Q], HeldRequest],
        load: WorkerLoad | None,
        now_s: float,
        *,
        comes_in_s: float = 0.0,
        step_left_s: float = 0.0,
    ) -> bool:
        """Takes a request into the queue, or refuses it; fills in what is expected of it.

        Args:
            held: of any request of the queue, as if a worker had it.
            load: of the worker that would have it; None if its model is on none.
            comes_in_s: seconds until its model is there.
            step_left_s: seconds that the running step of that worker still takes.

        Returns:
            False if it is refused, because it is not expected to begin in time and is to be refused then.
        """
        self.note_late(now_s)
        newcomer = held(request)
        own_s = newcomer.costs.seconds(0, newcomer.num_to_compute)
        request.expected_s = own_s + newcomer.mean_output * newcomer.costs.seconds(1, 0) * request.num_choices
        request.due_s = request.deadline_s - own_s
        ahead = self.queue.ahead_of(request, now_s)
        held_ahead = [held(each) for each in ahead]
        waits = load is not None and load.waits_for_room(newcomer, held_ahead)
        predicted_s = first_token_s(
            Ahead(
                comes_in_s,
                len(ahead) + 1 if waits else 0,
                self._pace.interval_s,
                step_left_s,
                own_s if load is None else load.prefill_s(newcomer, held_ahead),
            )
        )
        request.predicted_s, request.waits_for_room = predicted_s, waits
        if self._policy is QueuePolicy.SLO:
            cautious_s = self._error.cautious_s(predicted_s, waits_for_room=waits)
            if now_s + cautious_s > request.deadline_s:
                if request.refuses_miss:
                    self._error.note_refused(waits_for_room=waits)
                    return False
                request.due_s = -math.inf
        self.queue.add(request, now_s)
        return True

    def likely_s(self, request: Q) -> float:
        """Seconds from its arrival to its first token, as predicted then and by how far predictions were off."""
        return self._error.likely_s(request.predicted_s, waits_for_room=request.waits_for_room)

    def next(self, models: Collection[str], may_begin: Callable[[Q], bool], now_s: float) -> Q | None:
        """Takes the request out of the queue that is served next; see ``DeviceQueue.next``."""
        self.note_late(now_s)
        request = self.queue.next(models, may_begin, now_s)
        if request is not None:
            self.queue.grant(request)
            if request.due_s >= now_s:
                self._pace.note(now_s, others_wait=self.queue.has_in_time())
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
        if request.due_s > -math.inf and request.deadline_s < math.inf:
            self._error.note(request.predicted_s, seconds, waits_for_room=request.waits_for_room)
