"""A bounded cache over a slow, blocking look-up: a value is loaded in a thread, once for all callers that
wait for it."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Executor
from typing import Generic, TypeVar

from mooring.errors import OverloadedError

__all__ = ["SingleFlightCache"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class SingleFlightCache(Generic[K, V]):
    """Values by key; the least recently used is dropped first. Belongs to one event loop.

    Args:
        load: loads the value of a key; blocking, called in a thread. Its exceptions go to every caller that
            waits, and are not kept.
        max_entries: most values that are kept.
        max_loading: most values that are loaded or wait for it at a time; None for no bound.
        executor: runs the loads; None for the event loop's own threads.
        ttl_s: seconds for which a value stays good; ``inf`` by default.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        load: Callable[[K], V],
        *,
        max_entries: int,
        max_loading: int | None = None,
        executor: Executor | None = None,
        ttl_s: Callable[[V], float] = lambda _: float("inf"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self._max_entries = max_entries
        self._max_loading = max_loading
        self._executor = executor
        self._ttl_s = ttl_s
        self._clock = clock
        self._values: OrderedDict[K, tuple[V, float]] = OrderedDict()
        self._loading: dict[K, asyncio.Task[V]] = {}

    def __contains__(self, key: K) -> bool:
        """Whether there is a value of the key, however old."""
        return key in self._values

    async def get(self, key: K) -> V:
        """The value of the key, loaded if there is none or it is too old.

        Raises:
            OverloadedError: as many values are being loaded as may be.
        """
        entry = self._values.get(key)
        if entry is not None and self._clock() < entry[1]:
            self._values.move_to_end(key)
            return entry[0]
        task = self._loading.get(key)
        if task is None:
            if self._max_loading is not None and len(self._loading) >= self._max_loading:
                raise OverloadedError("Too many look-ups are under way: try again.", retry_after_s=1.0)
            task = self._loading[key] = asyncio.create_task(self._fill(key))
        # A caller that goes away must not take the value from the others.
        return await asyncio.shield(task)

    def put(self, key: K, value: V) -> None:
        """Keeps a value as if it had been loaded now."""
        self._values[key] = (value, self._clock() + self._ttl_s(value))
        self._values.move_to_end(key)
        while len(self._values) > self._max_entries:
            self._values.popitem(last=False)

    def discard(self, key: K) -> None:
        """Drops the value of the key, if there is one."""
        self._values.pop(key, None)

    async def _fill(self, key: K) -> V:
        try:
            value = await asyncio.get_running_loop().run_in_executor(self._executor, self._load, key)
        finally:
            del self._loading[key]
        self.put(key, value)
        return value
