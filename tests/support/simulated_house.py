"""A whole memory manager over simulated workers, as its unit tests keep house with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from memory_manager.config import DeviceBudget, ManagerConfig
from memory_manager.fleet.controller import MemoryManager
from memory_manager.fleet.events import Event, EventKind
from memory_manager.policy.residency import Residency, ResidencyEvent
from support.simulated_memory import PAGE, SimulatedHostCache, SimulatedWorker, deployment, run_virtually

CONFIG = ManagerConfig(
    max_waiting_requests=3,
)
BUDGET = 30 * PAGE  # two deployments of 10 + 2 and the worker's page fit, three do not


class House:
    """A manager, its host cache, its workers and what it told."""

    def __init__(self, config: ManagerConfig = CONFIG, **devices: int) -> None:
        self.cache = SimulatedHostCache()
        self.events: list[ResidencyEvent] = []
        self.decisions: list[Event] = []
        self.resident = asyncio.Event()
        budgets = devices or {"cpu": BUDGET}
        self.manager = MemoryManager(
            [DeviceBudget(name, num_bytes) for name, num_bytes in budgets.items()],
            self.cache,
            config,
            clock=asyncio.get_running_loop().time,
            sink=self.note,
            events=self.decisions.append,
        )
        self.workers: list[SimulatedWorker] = []

    def note(self, event: ResidencyEvent) -> None:
        self.events.append(event)
        if event.after is Residency.RESIDENT:
            self.resident.set()

    def add_worker(self, device: str = "cpu", budget_bytes: int = BUDGET, **options: Any) -> SimulatedWorker:
        worker = SimulatedWorker(budget_bytes, device=device, worker_id=f"worker-{device}", **options)
        worker.on_death = lambda dead: self.manager.worker_lost(dead.worker_id)
        self.manager.add_worker(worker)
        self.workers.append(worker)
        return worker

    async def bring_in(self, name: str, **policy: Any) -> None:
        """Deploys a model and makes it resident; nothing uses it."""
        self.manager.upsert_deployment(deployment(name, **policy))
        (await self.manager.acquire(name)).release()

    def residency(self, name: str) -> Residency:
        return next(each.residency for each in self.manager.snapshot().deployments if each.name == name)

    def owners(self) -> dict[str, int]:
        return {key: value // PAGE for key, value in self.manager.snapshot().devices[0].owners.items()}

    def transitions(self, name: str) -> list[tuple[str, str]]:
        return [(e.before.value, e.after.value) for e in self.events if e.deployment == name]

    def told(self, *kinds: EventKind, of: str | None = None) -> list[Event]:
        """Decisions of these kinds, in order."""
        return [e for e in self.decisions if e.kind in kinds and of in (None, e.deployment)]

    async def check_at_rest(self) -> None:
        """Once all has settled, ledger and workers agree to the byte."""
        await asyncio.sleep(3)
        self.manager.check()
        for worker in self.workers:
            assert worker.violations == []
            if worker.alive:
                worker.check_guarantees()
                shown = next(e for e in self.manager.snapshot().workers if e.worker_id == worker.worker_id)
                assert (shown.kv_lease_bytes, shown.stats.kv_bytes) == (worker.kv_bytes, worker.kv_bytes)
        weights = sum(
            v for e in self.manager.snapshot().devices for k, v in e.owners.items() if "weights" in k
        )
        assert weights == sum(each.weights_bytes for each in self.workers)
        assert self.manager.snapshot().num_ledger_mismatches == 0


@asynccontextmanager
async def house(*args: Any, **options: Any) -> AsyncIterator[House]:
    made = House(*args, **options)
    yield made
    await made.check_at_rest()
    await made.manager.stop()
    assert len(asyncio.all_tasks()) == 1


def virtually(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Makes an async test run on virtual time."""

    def run() -> None:
        run_virtually(test)

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run
