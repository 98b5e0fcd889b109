"""The requests on the workers: tells them of a death, and lets suspects wait for their trial.

``router.dispatch.suspects`` decides; this knows who runs where.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Hashable
from typing import Protocol

from engines.supervise.death import WorkerDeath
from router.dispatch.suspects import Suspects

__all__ = ["RunningRequest", "RunningRequests"]


class RunningRequest(Hashable, Protocol):
    """A request, as far as a worker's death concerns it."""

    def num_further_tokens(self) -> int:
        """Returns how many tokens it has got since it was last submitted."""
        ...

    def has_sequence_of(self, sequence_ids: Collection[int]) -> bool:
        """Whether one of these sequences is its own."""
        ...

    def interrupt(self, *, poisonous: bool) -> None:
        """Tells it that the worker under it died; if ``poisonous``, it is not to be tried again."""
        ...


class RunningRequests:
    """Which requests are on which worker, and which wait for their trial."""

    def __init__(self, suspects: Suspects[RunningRequest], clock: Callable[[], float]) -> None:
        self._suspects = suspects
        self._clock = clock
        self._present: dict[Hashable, dict[RunningRequest, None]] = {}  # by worker, in order of arrival
        self._waiting: dict[RunningRequest, asyncio.Future[None]] = {}

    async def wait_trial(self, request: RunningRequest) -> None:
        """Returns when the request may run: at once, unless it is a suspect."""
        if request not in self._suspects:
            return
        waiting = self._waiting[request] = asyncio.get_running_loop().create_future()
        self._suspects.wait(request)
        self._begin_trials()
        try:
            await waiting
        finally:
            del self._waiting[request]

    def enter(self, request: RunningRequest, worker: Hashable) -> None:
        """Notes that a request runs on a worker."""
        self._present.setdefault(worker, {})[request] = None

    def leave(self, request: RunningRequest, worker: Hashable) -> None:
        """Notes that a request neither runs on a worker nor waits for its trial any more."""
        present = self._present.get(worker, {})
        present.pop(request, None)
        if not present:
            self._present.pop(worker, None)
        self._suspects.stop(request)
        self._begin_trials()

    def forget(self, request: RunningRequest) -> None:
        """Drops a request that has ended."""
        self._suspects.forget(request)
        self._begin_trials()

    def progressed(self, request: RunningRequest) -> None:
        """Notes that a request has got tokens."""
        if self._suspects.is_tried(request):
            self._suspects.progressed(request, request.num_further_tokens())
            self._begin_trials()

    def worker_died(self, worker: Hashable, death: WorkerDeath) -> None:
        """Tells all requests of a dead worker. Called for the first sequence that it loses; later calls find it
        done."""
        present = self._present.pop(worker, {})
        in_step = [request for request in present if request.has_sequence_of(death.in_step)]
        failing = self._suspects.died(in_step, killed=death.killed, now_s=self._clock()) if present else None
        for request in present:
            request.interrupt(poisonous=request is failing)
        self._begin_trials()

    def _begin_trials(self) -> None:
        for request in self._suspects.begin_trials():
            waiting = self._waiting.get(request)
            if waiting is not None and not waiting.done():  # else it is being cancelled and will leave
                waiting.set_result(None)
