"""Decisions and mishaps of the memory manager, each with its reason in figures.

A ``ResidencyEvent`` tells that a replica's residency changed; an ``Event`` tells why, to whoever asks later.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from memory_manager.fleet.records import Replica
from memory_manager.fleet.worker_group import Worker
from memory_manager.policy.plan_types import Figures

__all__ = ["Event", "EventKind", "EventSink", "Reporter"]


class EventKind(enum.Enum):
    """Subject of an event."""

    LOAD = "load"  # begins: storage to device
    WAKE = "wake"  # begins: host memory to device
    READY = "ready"  # a load or wake has ended well
    DRAIN = "drain"  # takes no new requests
    RESUME = "resume"  # takes requests again
    EVICT = "evict"  # put to sleep to make room for another deployment
    SLEEP = "sleep"  # put to sleep for its own sake
    UNLOAD = "unload"  # its worker forgets it
    DROP = "drop"  # its host copy is given up
    FAILURE = "failure"  # a move has failed
    RETRY = "retry"  # a move that failed is tried again
    REFUSE = "refuse"  # a request is refused
    PREEMPT = "preempt"  # sequences lost their blocks
    KV_LEASE = "kv_lease"  # a worker may hold more KV or less
    BUDGET = "budget"  # a device's budget changed
    WORKER = "worker"  # came or went


@dataclass(frozen=True, slots=True)
class Event:
    """One decision or mishap.

    Attributes:
        at_s: on the manager's clock.
        reason: a sentence.
        deployment, replica_id, worker_id, device: what it is about; None where it is about none.
        figures: the numbers that it follows from.
        detail: of a decision about a residency, as JSON values: the deployments that go (``displaced``) and that come
            (``gained``) by it, the ``scores`` that decided it, and the ``bytes`` of the device that it moves.
    """

    at_s: float
    kind: EventKind
    reason: str
    deployment: str | None = None
    replica_id: str | None = None
    worker_id: str | None = None
    device: str | None = None
    figures: Figures = field(default_factory=dict)
    detail: Mapping[str, Any] = field(default_factory=dict)


EventSink = Callable[[Event], None]
"""Takes an event; must not raise or block."""


class Reporter:
    """Makes events of the controller's records.

    Args:
        clock: the manager's.
    """

    def __init__(self, clock: Callable[[], float], sink: EventSink) -> None:
        self._clock = clock
        self._sink = sink

    def of_replica(
        self,
        kind: EventKind,
        replica: Replica,
        reason: str,
        figures: Figures | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        group = replica.group
        event = Event(
            at_s=self._clock(),
            kind=kind,
            reason=reason,
            deployment=replica.spec.name,
            replica_id=replica.replica_id,
            worker_id=replica.worker_id,
            device=group.first.ledger.device if group is not None else None,
            figures=figures or {},
            detail=detail or {},
        )
        self._sink(event)

    def of_deployment(self, kind: EventKind, name: str, reason: str, figures: Figures | None = None) -> None:
        self._sink(Event(self._clock(), kind, reason, deployment=name, figures=figures or {}))

    def of_worker(self, kind: EventKind, worker: Worker, reason: str, figures: Figures | None = None) -> None:
        self._sink(
            Event(
                self._clock(),
                kind,
                reason,
                worker_id=worker.worker_id,
                device=worker.ledger.device,
                figures=figures or {},
            )
        )

    def of_device(self, kind: EventKind, device: str, reason: str, figures: Figures | None = None) -> None:
        self._sink(Event(self._clock(), kind, reason, device=device, figures=figures or {}))
