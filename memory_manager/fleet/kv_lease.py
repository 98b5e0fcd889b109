"""The KV lease of one worker: absolute, revisioned, and never below what the worker may still hold."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from memory_manager.fleet.ledger import Ledger, Owner
from memory_manager.ports import LeaseStatus, WorkerPort
from mooring.errors import InternalError, MooringError, WorkerLostError

__all__ = ["WorkerKVLease", "ask_again_s"]

logger = logging.getLogger(__name__)

_MAX_DOUBLINGS = 9  # of the pause after failures: 5 s where the poll is 10 ms


def ask_again_s(poll_s: float, num_failures: int) -> float:
    """Seconds before a worker is asked again: ``poll_s``, doubled with each failure in a row up to a limit."""
    return poll_s * 2.0 ** min(num_failures, _MAX_DOUBLINGS)


class WorkerKVLease:
    """Moves a worker's KV lease to where the planner aims.

    Growth is taken from the ledger first and then told to the worker; what it gives up leaves the ledger
    only after the worker has answered ``APPLIED``. So at every moment the ledger's lease covers what the
    worker may hold.

    Args:
        poll_s: how often a deferred lease is asked about.
        on_applied: called when the ledger has shrunk to the target.
    """

    def __init__(
        self, port: WorkerPort, ledger: Ledger, poll_s: float, on_applied: Callable[[], None]
    ) -> None:
        self._port = port
        self._ledger = ledger
        self._poll_s = poll_s
        self._on_applied = on_applied
        self._owner = Owner("kv", port.worker_id)
        self._changed = asyncio.Event()
        self._revision = 0
        self._num_failures = 0  # in a row
        self.target_bytes = 0

    @property
    def lease_bytes(self) -> int:
        """Bytes that the ledger promises the worker."""
        return self._ledger.lease_bytes(self._owner)

    def aim(self, target_bytes: int) -> None:
        """Sets the lease to move to.

        Raises:
            InternalError: the ledger has no room to grow so far; nothing changed.
        """
        growth_bytes = max(0, target_bytes - self.lease_bytes)
        if not self._ledger.grant(self._owner, growth_bytes):
            raise InternalError(f"no room to grow the KV lease of {self._port.worker_id} to {target_bytes}")
        self.target_bytes = target_bytes
        self._revision += 1
        self._changed.set()

    def end(self) -> None:
        """The worker is gone, and its KV with it."""
        self._ledger.release(self._owner)

    async def run(self) -> None:
        """Carries every aim out, the newest only where they come quickly. Runs until cancelled.

        Raises:
            WorkerLostError: the worker is gone.
        """
        while True:
            await self._changed.wait()
            self._changed.clear()
            while not await self._is_applied():  # noqa: ASYNC110
                # A worker cannot call us when its sequences have let go of enough, so it is asked again; one
                # that fails every time must not be kept busy with it.
                await asyncio.sleep(ask_again_s(self._poll_s, self._num_failures))
            self._on_applied()

    async def _is_applied(self) -> bool:
        """Tells the worker the target; True once it keeps to it and the ledger has shrunk."""
        revision, target_bytes = self._revision, self.target_bytes
        try:
            status = await self._port.set_lease(target_bytes, revision)
            if status in (LeaseStatus.STALE, LeaseStatus.CONFLICT):
                # Somebody before us led this worker; continue from where they were.
                stats = await self._port.stats()
                self._revision = max(self._revision, stats.kv_lease_revision) + 1
        except WorkerLostError:
            raise
        except MooringError as error:
            self._num_failures += 1
            logger.warning("worker %s did not take its KV lease: %s", self._port.worker_id, error)
            return False
        self._num_failures = 0
        if status is not LeaseStatus.APPLIED or revision != self._revision:
            return False
        self._ledger.shrink(self._owner, target_bytes)
        return True
