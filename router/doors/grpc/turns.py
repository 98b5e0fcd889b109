"""Turns to receive a message, so many at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

__all__ = ["Turns"]

T = TypeVar("T")


class Turns:
    """Turns to receive something. While nobody waits for a turn it may take long; otherwise it is short.

    Args:
        num_turns: most that are taken at a time.
        patient_s: seconds that a turn may take if nobody waits for one.
        hurried_s: seconds that it may take otherwise.
    """

    def __init__(self, num_turns: int, *, patient_s: float, hurried_s: float) -> None:
        self._free = asyncio.Semaphore(num_turns)
        self._patient_s = patient_s
        self._hurried_s = hurried_s
        self._num_waiting = 0
        self._running: dict[asyncio.Timeout, float] = {}  # with the loop's time at which each began

    @property
    def num_waiting(self) -> int:
        """How many wait for a turn."""
        return self._num_waiting

    @property
    def is_unused(self) -> bool:
        """Whether nobody has a turn, or waits for one."""
        return not self._running and not self._num_waiting

    async def receive(self, receive: Callable[[], Awaitable[T]]) -> T:
        """The result of ``receive``, which is called when its turn has come.

        Raises:
            TimeoutError: the turn took too long.
        """
        async with self._turn():
            begun_s = asyncio.get_running_loop().time()
            most_s = self._hurried_s if self._num_waiting else self._patient_s
            async with asyncio.timeout_at(begun_s + most_s) as limit:
                self._running[limit] = begun_s
                try:
                    return await receive()
                finally:
                    del self._running[limit]

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        self._num_waiting += 1
        try:
            if self._free.locked():
                self._hurry()
            await self._free.acquire()
        finally:
            self._num_waiting -= 1
        try:
            yield
        finally:
            self._free.release()

    def _hurry(self) -> None:
        for limit, begun_s in self._running.items():
            at_s = limit.when()
            if at_s is not None and at_s > begun_s + self._hurried_s:
                limit.reschedule(begun_s + self._hurried_s)
