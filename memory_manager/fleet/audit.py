"""Comparing what workers say they hold with what the ledger promised them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping

from memory_manager.fleet.events import EventKind, Reporter
from memory_manager.fleet.records import Replica
from memory_manager.fleet.worker_group import Worker, attempt
from memory_manager.kv_spec import PAGE_BYTES, round_to_pages
from memory_manager.policy.residency import Residency
from memory_manager.stats import ReplicaStats, WorkerStats
from mooring.errors import MooringError, WorkerLostError

__all__ = ["Audit", "Settled", "find_mismatches"]

logger = logging.getLogger(__name__)

Settled = Mapping[str, tuple[int, float]]
"""Lease on one worker, and time of the last transition, of each replica that nothing is under way for."""


class Audit:
    """Asks the workers again and again what they hold.

    Args:
        replicas: the controller's own, by id.
        poll_s: how often each worker is asked.
        clock: as the manager's.
        replan: asks for a new plan.
        reporter: told of preemptions.

    Attributes:
        num_mismatches: found so far; each is logged, and a bug of ours.
    """

    def __init__(
        self,
        replicas: Mapping[str, Replica],
        poll_s: float,
        clock: Callable[[], float],
        replan: Callable[[], None],
        reporter: Reporter,
    ) -> None:
        self._replicas = replicas
        self._poll_s = poll_s
        self._clock = clock
        self._replan = replan
        self._reporter = reporter
        self.num_mismatches = 0

    async def watch(self, worker: Worker) -> None:
        """Polls one worker until it is lost."""
        while True:
            await asyncio.sleep(self._poll_s)
            before, known, kv_lease_bytes = self._settled(worker), set(self._replicas), worker.kv.lease_bytes
            stats = await attempt(worker.port.stats())
            if isinstance(stats, WorkerLostError):
                return
            if isinstance(stats, MooringError):
                logger.warning("worker %s does not tell its figures: %s", worker.worker_id, stats)
                continue
            self._note_worker(worker, stats)
            for reported in stats.replicas:
                replica = self._replicas.get(reported.replica_id)
                if replica is not None and replica.worker_id in (None, worker.worker_id):
                    self._note(replica, reported)
            known.update(self._replicas)
            kv_lease_bytes = max(kv_lease_bytes, worker.kv.lease_bytes)
            for mismatch in find_mismatches(stats, before, self._settled(worker), known, kv_lease_bytes):
                self.num_mismatches += 1
                logger.error("ledger and worker %s disagree: %s", worker.worker_id, mismatch)

    def _note(self, replica: Replica, reported: ReplicaStats) -> None:
        num_swapped = reported.preemptions_by_swap_total - replica.stats.preemptions_by_swap_total
        num_preempted = reported.preemptions_total - replica.stats.preemptions_total
        replica.stats = reported
        if num_preempted > 0:
            figures = {
                "num_preempted": num_preempted,
                "num_swapped": max(0, num_swapped),
                "preemptions_total": reported.preemptions_total,
                "kv_bytes": reported.kv_bytes,
                "num_running": reported.num_running,
                "num_waiting": reported.num_queued,
            }
            reason = f"{num_preempted} sequences gave up their KV blocks: KV was short"
            self._reporter.of_replica(EventKind.PREEMPT, replica, reason, figures)

    def _note_worker(self, worker: Worker, reported: WorkerStats) -> None:
        if worker.note_kv_wanted(self._clock(), stats=reported):
            self._replan()

    def _settled(self, worker: Worker) -> Settled:
        return {
            each.replica_id: (each.lease_bytes if each.is_on(worker) else 0, each.state.since_s)
            for each in self._replicas.values()
            # The lease of a failed one is what its worker may still hold, not what it does.
            if not each.in_flight and each.residency is not Residency.FAILED
        }


def find_mismatches(
    stats: WorkerStats, before: Settled, after: Settled, known: Iterable[str], kv_lease_bytes: int
) -> list[str]:
    """Returns what does not agree, as sentences.

    Args:
        before, after: as of just before and just after the worker was asked; a replica that is not the same
            in both has moved meanwhile and proves nothing.
        known: ids of all replicas that there are, or were when the worker was asked.
        kv_lease_bytes: the largest KV lease meanwhile.
    """
    held = {each.replica_id: round_to_pages(each.weights_bytes) for each in stats.replicas}
    found = [
        f"{replica_id} holds {held.get(replica_id, 0)} bytes, its lease is {settled[0]}"
        for replica_id, settled in before.items()
        if after.get(replica_id) == settled and held.get(replica_id, 0) != settled[0]
    ]
    known = set(known)
    found += [f"{each}, which nobody knows, holds {held[each]} bytes" for each in held if each not in known]
    if stats.kv_bytes > max(kv_lease_bytes, PAGE_BYTES):
        found.append(f"KV holds {stats.kv_bytes} bytes, its lease is {kv_lease_bytes}")
    return found
