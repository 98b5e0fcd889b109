"""A worker's KV lease, moved to where it should be by a worker that may refuse."""

from __future__ import annotations

import asyncio

from support.simulated_memory import PAGE, SimulatedWorker, run_virtually

from memory_manager.fleet.kv_lease import WorkerKVLease
from memory_manager.fleet.ledger import Ledger
from memory_manager.ports import LeaseStatus
from mooring.errors import InternalError


class RefusingWorker(SimulatedWorker):
    """Refuses its lease for as long as ``refuses``."""

    refuses = True
    num_asked = 0

    async def set_lease(self, kv_bytes: int, revision: int) -> LeaseStatus:
        self.num_asked += 1
        if self.refuses:
            raise InternalError("not now")
        return await super().set_lease(kv_bytes, revision)


def test_a_worker_that_keeps_failing_is_asked_ever_more_rarely_and_served_when_it_recovers() -> None:
    async def main() -> None:
        ledger = Ledger("cpu", 100 * PAGE)
        worker = RefusingWorker(100 * PAGE)
        applied = asyncio.Event()
        lease = WorkerKVLease(worker, ledger, 0.01, applied.set)
        lease.aim(10 * PAGE)
        running = asyncio.create_task(lease.run())
        await asyncio.sleep(60)
        assert not applied.is_set()
        assert 10 <= worker.num_asked <= 25, "doubling from 20 ms to 5 s, and once every 5 s from there"
        worker.refuses = False
        await asyncio.wait_for(applied.wait(), 6)
        assert lease.lease_bytes == worker.kv_lease_bytes == 10 * PAGE
        running.cancel()

    run_virtually(main)
