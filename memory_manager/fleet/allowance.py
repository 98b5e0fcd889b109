"""Memory that a worker may hold of its device beyond its leases, ready for later."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from memory_manager.fleet.kv_lease import ask_again_s
from memory_manager.ports import WorkerPort
from mooring.errors import MooringError, WorkerLostError

__all__ = ["WorkerAllowance"]

logger = logging.getLogger(__name__)


class WorkerAllowance:
    """Tells one worker how many bytes it may hold in all although its leases are less.

    The only worker of a device may keep ready whatever is leased to nobody. If there are several, each holds its
    leases and no more, so that together they never hold more than the ledger has leased.

    Args:
        poll_s: pause after a failed call; doubles with each.
        on_told: called when the worker has answered.
    """

    def __init__(self, port: WorkerPort, poll_s: float, on_told: Callable[[], None]) -> None:
        self._port = port
        self._poll_s = poll_s
        self._on_told = on_told
        self._changed = asyncio.Event()
        self._target_bytes = 0
        self._told_bytes = 0  # at most so many, while a call is under way

    @property
    def is_none(self) -> bool:
        """Whether the worker holds its leases and no more, and knows of nothing else."""
        return not self._target_bytes and not self._told_bytes

    def aim(self, num_bytes: int) -> None:
        """Sets what the worker is to be told; absolute."""
        if num_bytes != self._target_bytes:
            self._target_bytes = num_bytes
            self._changed.set()

    async def run(self) -> None:
        """Tells the worker of every aim, the newest only if they come quickly. Runs until cancelled.

        Raises:
            WorkerLostError: the worker is gone.
        """
        num_failures = 0  # in a row
        while True:
            await self._changed.wait()
            self._changed.clear()
            num_bytes = self._target_bytes
            self._told_bytes = max(self._told_bytes, num_bytes)
            try:
                await self._port.set_memory_limit(num_bytes)
            except WorkerLostError:
                raise
            except MooringError as error:
                logger.warning("worker %s keeps what it has ready: %s", self._port.worker_id, error)
                await asyncio.sleep(ask_again_s(self._poll_s, num_failures))
                num_failures += 1
                self._changed.set()
                continue
            num_failures = 0
            self._told_bytes = num_bytes
            self._on_told()
