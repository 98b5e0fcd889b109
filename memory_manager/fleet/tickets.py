"""Requests that wait for a replica, and the rights of those that have one."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, TypeVar

from memory_manager.policy.pace import NUM_TIMED_AT_ONCE, Pace
from memory_manager.policy.slack import running_latest_s, waiting_latest_s

__all__ = ["Places", "ReplicaTicket", "Waiter"]


class _OfTenant(Protocol):
    @property
    def tenant(self) -> str | None: ...


R = TypeVar("R", bound=_OfTenant)


class Places(dict[R, None]):
    """Requests in the order in which they came, counted by tenant. Changed by the methods below alone."""

    def __init__(self) -> None:
        super().__init__()
        self._num_of: Counter[str | None] = Counter()

    def num_of(self, tenant: str | None) -> int:
        """How many are this tenant's."""
        return self._num_of[tenant]

    def add(self, request: R) -> None:
        if request not in self:
            self[request] = None
            self._num_of[request.tenant] += 1

    def discard(self, request: R) -> None:
        """Does nothing if it is not there."""
        if request in self:
            del self[request]
            self._num_of[request.tenant] -= 1
            if not self._num_of[request.tenant]:
                del self._num_of[request.tenant]

    def clear(self) -> None:
        super().clear()
        self._num_of.clear()


@dataclass(slots=True, eq=False)
class Waiter:
    """One acquire that waits.

    Attributes:
        deadline_s: when its first token is due; of one without a deadline, when its patience ends.
        tpot_target_s: seconds that each further token may take, on average.
        priority: higher goes first.
    """

    arrival_s: float
    deadline_s: float
    tpot_target_s: float
    priority: int
    tenant: str | None
    ticket: asyncio.Future[ReplicaTicket]

    def latest_s(self, pace: Pace) -> float:
        """The latest moment at which it has to be computed to meet its target."""
        return waiting_latest_s(self.deadline_s, pace.first_token_s)


@dataclass(slots=True, eq=False)
class ReplicaTicket:
    """The right to use a resident replica, which counts as activity until it is released.

    Attributes:
        replica_id, worker_id: where to send the request.
        artifact_key: of the weights that the replica runs.
        tenant: whose request it is; None if it is no tenant's.
        asked_at_s: when it arrived, or its replica came if that was later.
        deadline_s: when its first token is due.
        tpot_target_s: seconds that each further token may take, on average.
        priority: of the request, which counts while it is parked.
        pace: of its deployment.
        on_release: called with it at each release.
        predicted_ttft_s: seconds from the request's arrival to its first token, as predicted when it was accepted;
            None if nobody could tell.
    """

    replica_id: str
    worker_id: str
    artifact_key: str
    tenant: str | None
    asked_at_s: float
    deadline_s: float
    tpot_target_s: float
    priority: int
    pace: Pace
    clock: Callable[[], float]
    on_release: Callable[[ReplicaTicket], None]
    predicted_ttft_s: float | None = None
    _first_at_s: float | None = field(default=None, init=False)
    _num_before: int = field(default=0, init=False)  # tokens that the request had from a former ticket
    _num_tokens: int = field(default=0, init=False)
    _timed_at_s: float = field(default=0.0, init=False)  # when it had ``_num_timed`` tokens
    _num_timed: int = field(default=0, init=False)

    def note_tokens(self, num_tokens: int) -> None:
        """Tells how many tokens the request has by now; of several choices, that of any."""
        if self._first_at_s is None:
            self._first_at_s = self._timed_at_s = self.clock()
            self._num_before, self._num_timed = num_tokens - 1, num_tokens
        self._num_tokens = max(self._num_tokens, num_tokens)
        if (num_new := self._num_tokens - self._num_timed) >= NUM_TIMED_AT_ONCE:
            self._time(num_new)

    def _time(self, num_new: int) -> None:
        now_s = self.clock()
        self.pace.note_tokens(num_new, self._timed_at_s, now_s)
        self._timed_at_s, self._num_timed = now_s, self._num_tokens

    def latest_s(self) -> float:
        """The latest moment at which it has to be computed to meet its targets, on the manager's clock."""
        if self._first_at_s is None:
            return waiting_latest_s(self.deadline_s, self.pace.first_token_s)
        return running_latest_s(
            first_at_s=self._first_at_s,
            deadline_s=self.deadline_s,
            num_tokens=self._num_tokens - self._num_before,
            expected_tokens=self.pace.output_tokens - self._num_before,
            token_s=self.pace.token_s,
            tpot_target_s=self.tpot_target_s,
        )

    def note_pace(self, ttft_target_s: float) -> None:
        """Takes what the request took, if it has tokens, into its deployment's means."""
        if self._first_at_s is not None:
            self.pace.note_first_token(max(0.0, self._first_at_s - self.asked_at_s), ttft_target_s)
            if 0 < self._num_tokens - self._num_before - 1 < NUM_TIMED_AT_ONCE:  # it was too short until now
                self._time(self._num_tokens - self._num_timed)
            self.pace.note_end(self._num_tokens)

    def release(self) -> None:
        """Ends the use. Safe to call more than once, and after the worker's death."""
        self.on_release(self)

    def __enter__(self) -> ReplicaTicket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
