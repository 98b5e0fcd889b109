"""Traces of what an operator wants to know afterwards: refused keys, and administrative acts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter

__all__ = ["AuditTrail"]

_log = logging.getLogger("mooring.audit")


class AuditTrail:
    """Counts refused keys and administrative acts, and logs them. Belongs to one event loop.

    Whoever has no key can make refusals without end, so a line about them is written at most once in ``interval_s``
    and says how many there were. Nothing of a key is written.

    Args:
        registry: takes the counters.
        interval_s: least seconds between two lines about refused keys.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        interval_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._refused = Counter(
            "mooring_refused_keys", "Requests refused for their key.", ["door", "reason"], registry=registry
        )
        self._acts = Counter(
            "mooring_admin_requests",
            "Requests that may change something.",
            ["act", "outcome"],
            registry=registry,
        )
        self._interval_s = interval_s
        self._clock = clock
        self._next_line_s = float("-inf")
        self._num_untold = 0

    def key_refused(self, door: str, api_key: str | None, address: str) -> None:
        """Notes that a request was refused since its key is missing or wrong.

        Args:
            door: ``openai``, ``kserve``, ``admin``, ``metrics`` or ``grpc``.
            address: the client's, as far as it is known.
        """
        reason = "wrong" if api_key else "missing"
        self._refused.labels(door, reason).inc()
        self._num_untold += 1
        now_s = self._clock()
        if now_s >= self._next_line_s:
            _log.warning(
                "%d refused for their key since the last such line; now: %s key at the %s door, from %s",
                *(self._num_untold, reason, door, address),
            )
            self._num_untold = 0
            self._next_line_s = now_s + self._interval_s

    def act(self, act: str, target: str, outcome: str, address: str) -> None:
        """Notes an administrative request whose key was good.

        Args:
            act: what was asked for, one of few: a label of the counter.
            target: what it was done to, as the client wrote it.
            outcome: the status of the answer.
        """
        self._acts.labels(act, outcome).inc()
        _log.info("admin: %s (%s) from %s: %s", act, ascii(target[:200]), address, outcome)
