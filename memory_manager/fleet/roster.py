"""The workers that take orders: their coming, their draining and their end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

from memory_manager.config import ManagerConfig
from memory_manager.fleet.allowance import WorkerAllowance
from memory_manager.fleet.audit import Audit
from memory_manager.fleet.events import EventKind, Reporter
from memory_manager.fleet.execution import Execution
from memory_manager.fleet.kv_lease import WorkerKVLease
from memory_manager.fleet.ledger import Ledger
from memory_manager.fleet.moves import Moves
from memory_manager.fleet.records import Replica
from memory_manager.fleet.worker_group import Worker, WorkerGroup
from memory_manager.policy.residency import ON_DEVICE, Residency
from memory_manager.ports import WorkerPort
from mooring.errors import ConfigurationError, ConflictError, WorkerLostError

__all__ = ["Roster"]


class Roster:
    """Takes workers in and lets them go, each with all that it holds.

    Args:
        ledgers, workers, replicas: the controller's own, by name and id.
        clock: as the manager's.
        replan: asks for a new plan.
        on_change: called when replicas have lost their worker or are to leave it; asks for a new plan too.
    """

    def __init__(
        self,
        ledgers: Mapping[str, Ledger],
        workers: dict[str, Worker],
        replicas: Mapping[str, Replica],
        moves: Moves,
        execution: Execution,
        audit: Audit,
        reporter: Reporter,
        config: ManagerConfig,
        clock: Callable[[], float],
        replan: Callable[[], None],
        on_change: Callable[[], None],
    ) -> None:
        self._ledgers = ledgers
        self._workers = workers
        self._replicas = replicas
        self._moves = moves
        self._execution = execution
        self._audit = audit
        self._reporter = reporter
        self._config = config
        self._clock = clock
        self._replan = replan
        self._on_change = on_change

    def add(self, port: WorkerPort) -> None:
        """See ``MemoryManager.add_worker``."""
        if port.device not in self._ledgers:
            raise ConfigurationError(
                f"worker {port.worker_id} is on {port.device}, which has no memory budget"
            )
        if port.worker_id in self._workers:
            raise ConflictError(f"worker {port.worker_id} is there already")
        ledger = self._ledgers[port.device]
        kv = WorkerKVLease(port, ledger, self._config.lease_poll_s, self._replan)
        allowance = WorkerAllowance(port, self._config.lease_poll_s, self._let_in)
        worker = Worker(port, ledger, kv, allowance, port.capabilities())
        self._workers[port.worker_id] = worker
        alone = WorkerGroup((worker,))
        for keeper in (kv, allowance):
            self._execution.spawn(alone, self._keep(keeper))
        self._execution.spawn(alone, self._audit.watch(worker))
        self.allow(port.device)

    def allow(self, device: str) -> None:
        """Tells the workers of a device what they may hold beyond their leases: the only one may keep ready whatever
        the budget leaves it, and of several none anything."""
        there = [each for each in self._workers.values() if each.port.device == device]
        for worker in there:
            ledger = worker.ledger
            unleased_bytes = ledger.budget_bytes - ledger.bytes_of("reserve") - ledger.others_bytes
            worker.allowance.aim(unleased_bytes if len(there) == 1 else 0)
        self._let_in()

    def _let_in(self) -> None:
        """Lets workers take orders whose devices nobody else holds more of than is leased to him."""
        for worker in self._workers.values():
            others = (each for each in self._workers.values() if each.port.device == worker.port.device)
            if not worker.takes_orders and all(each is worker or each.allowance.is_none for each in others):
                worker.takes_orders = True
                self._reporter.of_worker(EventKind.WORKER, worker, "takes orders")
                self._replan()

    async def drain(self, worker_id: str, within_s: float) -> None:
        """See ``MemoryManager.drain_worker``."""
        worker = self._workers.get(worker_id)
        if worker is None:
            return
        if worker.leaves_by_s is None:
            worker.leaves_by_s = self._clock() + within_s
            hosted = self._hosted_by(worker)
            for replica in hosted:
                replica.deployment.stirred = True
            figures = {"num_replicas": len(hosted), "within_s": within_s}
            self._reporter.of_worker(EventKind.WORKER, worker, "is to leave: it gets no replicas", figures)
            self._on_change()
        await worker.drained.wait()

    def note_drained(self) -> None:
        """Tells those who wait for a worker to drain once no replica is left on it."""
        for worker in self._workers.values():
            if worker.leaves_by_s is not None and not self._hosted_by(worker):
                worker.drained.set()

    def lose(self, worker_id: str) -> None:
        """See ``MemoryManager.worker_lost``."""
        worker = self._workers.pop(worker_id, None)
        if worker is None:
            return
        worker.drained.set()
        for task in worker.tasks:
            task.cancel()
        hosted = self._hosted_by(worker)
        figures = {"num_replicas": len(hosted), "kv_lease_bytes": worker.kv.lease_bytes}
        end = "lost" if worker.leaves_by_s is None else "removed"
        self._reporter.of_worker(EventKind.WORKER, worker, f"{end}: its device memory is free", figures)
        worker.kv.end()
        for replica in hosted:
            self._drop_from_lost(replica, worker)
        self.allow(worker.port.device)
        self._on_change()

    def _hosted_by(self, worker: Worker) -> list[Replica]:
        return [each for each in self._replicas.values() if each.is_on(worker)]

    async def _keep(self, keeper: WorkerKVLease | WorkerAllowance) -> None:
        with contextlib.suppress(WorkerLostError):  # its supervisor tells when its memory is free
            await keeper.run()

    def _drop_from_lost(self, replica: Replica, worker: Worker) -> None:
        """Takes a replica off a lost worker; if others hold shares of it, it has failed until they have unloaded
        those."""
        assert replica.group is not None, "the worker knew it"
        left = replica.group.without(worker, replica.owner)
        replica.tickets.clear()
        replica.in_flight = False
        replica.deployment.stirred = True
        error: WorkerLostError | None = None
        if replica.residency in (Residency.LOADING, Residency.WAKING):
            # Perhaps it was this load that killed the worker; it must not do so for ever.
            error = WorkerLostError(f"the worker died {replica.num_failures + 1} times while loading it")
            self._moves.count_failure(replica, error)
        elif replica.residency in ON_DEVICE:
            # It had come well; that its worker would not let it go does not keep it from the next one.
            replica.num_failures, replica.retry_at_s = 0, 0.0
        replica.group = left
        if left is None:
            replica.forget_group()
        if error is not None and replica.num_failures >= self._config.wake_attempts:
            self._moves.fail(replica, error)
        elif left is not None and replica.residency is not Residency.FAILED:
            self._moves.enter(replica, Residency.FAILED, "worker lost")
        elif replica.residency in ON_DEVICE:
            self._moves.enter(replica, self._moves.off_device(replica), "worker lost")
