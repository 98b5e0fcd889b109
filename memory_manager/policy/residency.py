"""The residency of a replica: a state machine with every transition in one table."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from mooring.errors import InternalError

__all__ = ["ON_DEVICE", "TRANSITIONS", "Residency", "ResidencyEvent", "ResidencyState"]


class Residency(enum.Enum):
    """The place where a replica's weights are, or the move that they are on."""

    COLD = "cold"  # storage
    WARM = "warm"  # host memory
    RESIDENT = "resident"  # device
    LOADING = "loading"  # storage to device
    WAKING = "waking"  # host memory to device
    DRAINING = "draining"  # resident; takes no new requests, finishes its own, then goes
    FAILED = "failed"


_R = Residency

TRANSITIONS: dict[Residency, frozenset[Residency]] = {
    # A host copy was made for another replica of the same artifact; or a load begins.
    _R.COLD: frozenset({_R.WARM, _R.LOADING}),
    # The host copy was evicted; a wake begins; or one worker of its group died, or alone forgot it.
    _R.WARM: frozenset({_R.COLD, _R.WAKING, _R.FAILED}),
    # Done; failed; or the worker died (warm if the host copy was already made).
    _R.LOADING: frozenset({_R.RESIDENT, _R.FAILED, _R.COLD, _R.WARM}),
    # Done; rolled back; failed too often; or the worker died and the host copy is gone too.
    _R.WAKING: frozenset({_R.RESIDENT, _R.WARM, _R.FAILED, _R.COLD}),
    # To go when its requests have finished; asleep, or unloaded; or the worker died (failed if others of its group
    # still hold their shares, or only some let go).
    _R.RESIDENT: frozenset({_R.DRAINING, _R.WARM, _R.COLD, _R.FAILED}),
    # Wanted again, or could not be put to sleep; asleep; unloaded, or the worker died; or only some workers let go.
    _R.DRAINING: frozenset({_R.RESIDENT, _R.WARM, _R.COLD, _R.FAILED}),
    # Tried again, from wherever the weights are.
    _R.FAILED: frozenset({_R.COLD}),
}

ON_DEVICE = (_R.LOADING, _R.WAKING, _R.RESIDENT, _R.DRAINING)
"""Residencies in which a replica's weights and KV guarantee count against its device; few, so not a set: the hash of
an enum's member is slow."""


@dataclass(frozen=True, slots=True)
class ResidencyEvent:
    """One transition of one replica.

    Attributes:
        at_s: on the manager's clock.
        worker_id: the worker that the replica is on, goes to or comes from; None if there is none.
        before: the residency that ended.
        after: the residency that began.
        duration_s: seconds spent in ``before``; if that is loading, the duration of the load.
        reason: why, with the figures that decided it, if any did.
    """

    at_s: float
    deployment: str
    replica_id: str
    worker_id: str | None
    before: Residency
    after: Residency
    duration_s: float
    reason: str


@dataclass(slots=True)
class ResidencyState:
    """The present residency of one replica.

    Attributes:
        residency: the present residency.
        since_s: when it began.
        reason: why it began; if the replica failed, what went wrong.
    """

    residency: Residency
    since_s: float
    reason: str = ""

    def move(self, after: Residency, now_s: float, reason: str) -> float:
        """Makes the transition; returns the seconds spent in the residency that ends.

        Raises:
            InternalError: the table has no such transition.
        """
        if after not in TRANSITIONS[self.residency]:
            raise InternalError(
                f"residency cannot go from {self.residency.value} to {after.value} ({reason})"
            )
        duration_s = now_s - self.since_s
        self.residency, self.since_s, self.reason = after, now_s, reason
        return duration_s
