"""One replica on a group of simulated workers, moved by hand: a memory manager that makes no plans."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from memory_manager.config import DeviceBudget, ManagerConfig
from memory_manager.fleet.controller import MemoryManager
from memory_manager.fleet.worker_group import WorkerGroup
from memory_manager.policy.plan_types import Sleep, Unload, Wake
from memory_manager.policy.residency import Residency
from support.simulated_memory import PAGE, SimulatedHostCache, SimulatedWorker, deployment

BUDGET_PAGES = 30
SHARE_PAGES = 10


class GroupHouse:
    """A replica of ``SHARE_PAGES`` on each member of its group, and ledgers that are looked at all the time.

    Args:
        devices: those of the workers, by rank; several may be on one device.
        options: as ``SimulatedWorker`` has them.
    """

    def __init__(self, devices: Sequence[str], seed: int = 0, **options: Any) -> None:
        self.loop = asyncio.get_running_loop()
        self.cache = SimulatedHostCache()
        self.manager = MemoryManager(
            [DeviceBudget(name, BUDGET_PAGES * PAGE) for name in sorted(set(devices))],
            self.cache,
            ManagerConfig(),
            clock=self.loop.time,
        )
        self.manager._schedule.stop()
        self.manager.upsert_deployment(deployment("a", SHARE_PAGES))
        (self.replica,) = self.manager._replicas.values()
        self.options = options
        self.seed = seed
        self.neighbours: dict[str, list[SimulatedWorker]] = {name: [] for name in devices}
        self.workers: dict[str, SimulatedWorker] = {}
        for rank, device in enumerate(devices):
            self.start_worker(f"rank-{rank}", device)

    def start_worker(self, worker_id: str, device: str) -> None:
        self.seed += 1
        worker = SimulatedWorker(
            BUDGET_PAGES * PAGE, worker_id=worker_id, device=device, seed=self.seed, **self.options
        )
        worker.on_death = self.on_death
        worker.neighbours = self.neighbours[device]
        worker.neighbours.append(worker)
        self.workers[worker_id] = worker
        self.manager.add_worker(worker)

    def on_death(self, dead: SimulatedWorker) -> None:
        assert dead.violations == []
        self.loop.call_later(0.01, self.manager.worker_lost, dead.worker_id)
        self.loop.call_later(0.02, self.start_worker, dead.worker_id, dead.device)

    def check(self) -> None:
        """Each member has the same lease, nobody else has any, and no worker holds more than its own."""
        self.manager.check()
        group, owner = self.replica.group, self.replica.owner
        members = group.members if group is not None else ()
        for ledger in self.manager._ledgers.values():
            num_members = sum(each.ledger is ledger for each in members)
            assert ledger.lease_bytes(owner) == num_members * self.replica.lease_bytes
        there = {each.worker_id for each in members}
        for worker in filter(lambda each: each.alive, self.workers.values()):
            assert worker.weights_bytes <= (self.replica.lease_bytes if worker.worker_id in there else 0)
            assert worker.violations == []

    def check_gone(self) -> None:
        """Nothing of the replica is left anywhere."""
        self.check()
        assert self.replica.group is None
        assert not any(each.held for each in self.workers.values() if each.alive)
        assert not self.cache.pins

    async def bring(self) -> None:
        """Loads it onto all workers, once all of them take orders."""
        workers = self.manager._workers
        await asyncio.sleep(0.05)
        while not all(each in workers and workers[each].takes_orders for each in self.workers):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        group = WorkerGroup(tuple(workers[each] for each in self.workers))
        self.manager._moves.begin_bringing(self.replica, group, "a test")
        self.manager._execution.spawn(group, self.manager._moves.load(self.replica, group))
        await self.settle()

    async def move(self, action: type[Wake | Sleep | Unload]) -> None:
        self.manager._execution.begin(action(self.replica.replica_id, "a test"))
        await self.settle()

    async def settle(self) -> None:
        while self.replica.in_flight:
            self.check()
            await asyncio.sleep(0.003)

    def can(self, action: type[Wake | Sleep | Unload]) -> bool:
        """Whether a plan might begin it now."""
        if self.replica.group is None:
            return False
        if action is Sleep:
            return self.replica.residency is Residency.RESIDENT
        return action is Unload or self.replica.residency is Residency.WARM

    def failing(self, verb: str, *ranks: int) -> None:
        """Has a call fail on these ranks and on no other."""
        for rank, worker in enumerate(self.workers.values()):
            worker.failing -= {verb}
            worker.failing |= {verb} if rank in ranks else set()

    async def stop(self) -> None:
        await self.manager.stop()
        assert len(asyncio.all_tasks()) == 1
