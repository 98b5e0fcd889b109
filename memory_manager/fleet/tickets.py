"""Requests that wait for a replica, and the rights of those that have one."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, TypeVar

from memory_manager.policy.claim import RequestClaim
from memory_manager.policy.pace import NUM_TIMED_AT_ONCE, Pace
from memory_manager.policy.slack import running_latest_s, waiting_latest_s

__all__ = ["Places", "ReplicaTicket", "Waiter"]


class _OfTenant(Protocol):
    @property
    def tenant(self) -> str: ...

    @property
    def num_choices(self) -> int: ...


R = TypeVar("R", bound=_OfTenant)


class Places(dict[R, None]):
    """Requests in the order in which they came, counted by tenant. Changed by the methods below alone.

    Attributes:
        num_sequences: that they ask for together.
    """

    def __init__(self) -> None:
        super().__init__()
        self._num_of: Counter[str] = Counter()
        self.num_sequences = 0

    def num_of(self, tenant: str) -> int:
        """How many are this tenant's."""
        return self._num_of[tenant]

    def add(self, request: R) -> None:
        if request not in self:
            self[request] = None
            self._num_of[request.tenant] += 1
            self.num_sequences += request.num_choices

    def discard(self, request: R) -> None:
        """Does nothing if it is not there."""
        if request in self:
            del self[request]
            self.num_sequences -= request.num_choices
            self._num_of[request.tenant] -= 1
            if not self._num_of[request.tenant]:
                del self._num_of[request.tenant]

    def clear(self) -> None:
        super().clear()
        self._num_of.clear()
        self.num_sequences = 0


@dataclass(slots=True, eq=False)
class Waiter(RequestClaim):
    """One acquire that waits; a claim without a deadline is due when its patience ends."""

    ticket: asyncio.Future[ReplicaTicket] = field(kw_only=True)

    def latest_s(self, pace: Pace) -> float:
        """The latest moment at which it has to be computed to meet its target."""
        return waiting_latest_s(self.deadline_s, pace.first_token_s)


@dataclass(slots=True, eq=False)
class ReplicaTicket:
    """The right to use a resident replica, which counts as activity until it is released.

    Attributes:
        replica_id, worker_id: where to send the request.
        artifact_key: of the weights that the replica runs.
        claim: what the request was promised, and how far it has come.
        asked_at_s: when it arrived, or its replica came if that was later.
        pace: of its deployment.
        predicted_ttft_s: seconds from its arrival to its first token, as predicted then; None if nothing is known.
        on_tokens: called with it and the number of its new tokens.
        on_release: called with it at each release.
    """

    replica_id: str
    worker_id: str
    artifact_key: str
    claim: RequestClaim
    asked_at_s: float
    pace: Pace
    predicted_ttft_s: float | None
    clock: Callable[[], float]
    on_tokens: Callable[[ReplicaTicket, int], None]
    on_release: Callable[[ReplicaTicket], None]
    _num_before: int = field(default=0, init=False)  # tokens that the request had from a former ticket
    _timed_at_s: float = field(default=0.0, init=False)  # when it had ``_num_timed`` tokens
    _num_timed: int = field(default=0, init=False)

    @property
    def tenant(self) -> str:
        """Whose request it is."""
        return self.claim.tenant

    @property
    def num_choices(self) -> int:
        """Sequences that it asks for."""
        return self.claim.num_choices

    def note_tokens(self, num_tokens: int) -> None:
        """Tells how many tokens the request has by now; of several choices, that of any."""
        claim = self.claim
        if claim.first_at_s is None:
            claim.first_at_s = self._timed_at_s = self.clock()
            self._num_before, self._num_timed = num_tokens - 1, num_tokens
            self.on_tokens(self, 0)
        elif num_tokens > claim.num_output:
            self.on_tokens(self, num_tokens - claim.num_output)
        claim.num_output = max(claim.num_output, num_tokens)
        if (num_new := claim.num_output - self._num_timed) >= NUM_TIMED_AT_ONCE:
            self._time(num_new)

    def _time(self, num_new: int) -> None:
        now_s = self.clock()
        self.pace.note_tokens(num_new, self._timed_at_s, now_s)
        self._timed_at_s, self._num_timed = now_s, self.claim.num_output

    def latest_s(self) -> float:
        """The latest moment at which it has to be computed to meet its targets, on the manager's clock."""
        claim = self.claim
        if claim.first_at_s is None:
            return waiting_latest_s(claim.deadline_s, self.pace.first_token_s)
        return running_latest_s(
            first_at_s=claim.first_at_s,
            deadline_s=claim.deadline_s,
            num_tokens=claim.num_output - self._num_before,
            expected_tokens=self.pace.output_tokens - self._num_before,
            token_s=self.pace.token_s,
            tpot_target_s=claim.tpot_target_s,
        )

    def note_pace(self, ttft_target_s: float) -> None:
        """Takes what the request took, if it has tokens, into its deployment's means."""
        first_at_s, num_tokens = self.claim.first_at_s, self.claim.num_output
        if first_at_s is not None:
            self.pace.note_first_token(max(0.0, first_at_s - self.asked_at_s), ttft_target_s)
            if 0 < num_tokens - self._num_before - 1 < NUM_TIMED_AT_ONCE:  # it was too short until now
                self._time(num_tokens - self._num_timed)
            self.pace.note_end(num_tokens)

    def release(self) -> None:
        """Ends the use. Safe to call more than once, and after the worker's death."""
        self.on_release(self)

    def __enter__(self) -> ReplicaTicket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
