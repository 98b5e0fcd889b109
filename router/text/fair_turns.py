"""Turns to have texts worked on, divided fairly between tenants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from router.tenancy.tenant import Tenant

__all__ = ["FairTurns"]


class FairTurns:
    """Turns of which so many are taken at a time, first come, first served. A tenant has at most that many places
    among those who have a turn or wait for one, and waits for such a place behind nobody but itself.

    Args:
        num_turns: most that are taken at a time.
    """

    def __init__(self, num_turns: int) -> None:
        self._num_turns = num_turns
        self._free = asyncio.Semaphore(num_turns)
        self._places: WeakValueDictionary[Tenant, asyncio.Semaphore] = WeakValueDictionary()

    @asynccontextmanager
    async def turn(self, tenant: Tenant) -> AsyncIterator[None]:
        """A turn of a tenant, once it has come."""
        places = self._places.get(tenant)
        if places is None:
            places = self._places[tenant] = asyncio.Semaphore(self._num_turns)
        async with places, self._free:
            yield
