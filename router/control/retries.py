"""Tries things again, after longer and longer pauses, if they failed for a reason that may pass."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from mooring.errors import MooringError

__all__ = ["Retries", "RetryConfig"]


logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RetryConfig:
    """Pauses between attempts.

    Attributes:
        first_s: seconds after the first failure; the pause doubles with each further one.
        max_s: longest pause.
    """

    first_s: float = 1.0
    max_s: float = 60.0


class Retries:
    """Retries named things, each with pauses of its own. Lives on one event loop.

    Args:
        attempt: tries one thing again, and reports by ``failed`` or ``settled`` how that went.
    """

    def __init__(
        self, attempt: Callable[[str], Awaitable[object]], config: RetryConfig | None = None
    ) -> None:
        self._attempt = attempt
        self._config = config or RetryConfig()
        self._num_failures: dict[str, int] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False

    def failed(self, name: str) -> float:
        """Notes that a thing failed; returns the seconds until it is tried again."""
        self._cancel(name)
        num_failures = self._num_failures[name] = self._num_failures.get(name, 0) + 1
        wait_s = min(self._config.max_s, self._config.first_s * 2.0 ** min(num_failures - 1, 32))
        if not self._stopped:
            self._timers[name] = asyncio.get_running_loop().call_later(wait_s, self._begin, name)
        return wait_s

    def settled(self, name: str) -> None:
        """Notes that a thing went well, or is no longer wanted."""
        self._cancel(name)
        self._num_failures.pop(name, None)

    async def stop(self) -> None:
        """Tries nothing more; cancels attempts under way and waits for their end."""
        self._stopped = True
        for name in list(self._timers):
            self._cancel(name)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _cancel(self, name: str) -> None:
        if (timer := self._timers.pop(name, None)) is not None:
            timer.cancel()

    def _begin(self, name: str) -> None:
        self._timers.pop(name, None)
        task = asyncio.get_running_loop().create_task(self._run(name), name=f"retry-{name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, name: str) -> None:
        try:
            await self._attempt(name)
        except MooringError as error:
            logger.warning("%s cannot be tried again yet: %s", name, error.message)
            self.failed(name)
