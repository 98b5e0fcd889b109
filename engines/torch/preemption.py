"""Preempts sequences of a worker's models, whoever needs their KV."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

from engines.torch.replica import TorchReplica
from engines.torch.scheduling.compose import PreemptibleSequences, least_urgent
from memory_manager.kv_spec import PAGE_BYTES

__all__ = ["WorkerPreemption"]


class WorkerPreemption:
    """Preempts one sequence after the other, in the order of ``compose.least_urgent`` over several models.

    Args:
        replicas: gives those that have sequences now.
        exceeds_guarantee: tells by a replica's id whether it holds more KV than an operator guaranteed to it.
        restarting: lets a model begin anew if its books break in the block.
    """

    def __init__(
        self,
        replicas: Callable[[], list[TorchReplica]],
        exceeds_guarantee: Callable[[str], bool],
        restarting: Callable[[TorchReplica], AbstractContextManager[None]],
    ) -> None:
        self._replicas = replicas
        self._exceeds_guarantee = exceeds_guarantee
        self._restarting = restarting

    def for_lease(self, num_pages: int) -> bool:
        """Preempts a sequence of a model that sleeps, or else of one that runs; False if none has blocks. What is
        guaranteed to a model is taken only if all others have no more than their own."""
        resident = [replica for replica in self._replicas() if replica.is_resident]
        beyond = [replica for replica in resident if self._exceeds_guarantee(replica.replica_id)]
        return self.of_parked(num_pages) or self.of(beyond, num_pages) or self.of(resident, num_pages)

    def of_parked(self, num_pages: int) -> bool:
        """Preempts the least urgent sequence of all models that sleep; False if none of theirs has blocks."""
        return self.of([replica for replica in self._replicas() if not replica.is_resident], num_pages)

    def of(self, replicas: Iterable[TorchReplica], num_pages: int) -> bool:
        """Preempts the least urgent sequence of these models, for so many pages; False if none has blocks."""
        candidates = [
            (replica, runner)
            for replica in replicas
            if (runner := replica.runner) is not None and runner.num_running
        ]
        if not candidates:
            return False
        sequences = PreemptibleSequences.joined([runner.preemptible() for _, runner in candidates])
        row = least_urgent(sequences, num_pages * PAGE_BYTES)
        assert row is not None, "somebody runs"
        replica, runner = candidates[sequences.model[row]]
        with self._restarting(replica):
            runner.preempt(int(sequences.slots[row]))
        return True
