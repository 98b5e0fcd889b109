"""Watches a device for other processes' memory and lets the memory manager follow."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol

from memory_manager.watch.devices import DeviceReader
from memory_manager.watch.others_rule import OthersConfig, OthersRule, room_bytes
from mooring.units import format_bytes

__all__ = ["BudgetOwner", "OthersWatch"]

logger = logging.getLogger(__name__)


class BudgetOwner(Protocol):
    """The memory manager, as far as it is needed here."""

    def budget_of(self, device: str) -> tuple[int, int]:
        """The configured budget of the device and the part of it that cannot be given up, in bytes."""
        ...

    def held_bytes(self, device: str) -> int:
        """Bytes of device memory that the workers on the device hold now."""
        ...

    def set_others(self, device: str, num_bytes: int, reason: str) -> None:
        """Leaves ``num_bytes`` of the device's budget to other processes; absolute."""
        ...


class OthersWatch:
    """Reads one device again and again.

    Args:
        reader: reads the device; it blocks, so it is called on a thread.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        device: str,
        reader: DeviceReader,
        owner: BudgetOwner,
        config: OthersConfig,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._device = device
        self._reader = reader
        self._owner = owner
        self._config = config
        self._clock = clock
        self._budget_bytes, floor_bytes = owner.budget_of(device)
        self._rule = OthersRule(self._budget_bytes, floor_bytes, config)

    async def run(self) -> None:
        """Reads the device every ``period_s`` until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(self._config.period_s)

    async def look(self) -> None:
        """Reads the device once. If it cannot be read, the reader says so once in the log, and the configured
        budget is in force."""
        memory = await asyncio.to_thread(self._reader.read)
        before_bytes = self._rule.effective_bytes
        room = stalled_share = None
        if memory is not None:
            held_bytes = self._owner.held_bytes(self._device)
            room = room_bytes(memory, held_bytes, self._config.num_sharing)
            stalled_share = memory.stalled_share
        now_bytes = self._rule.observe(room, stalled_share, self._clock())
        if now_bytes == before_bytes:
            return
        free = "it cannot be read" if room is None else f"there is {format_bytes(room)} for us"
        reason = (
            f"budget of {self._device} goes from {format_bytes(before_bytes)} to {format_bytes(now_bytes)} of "
            f"{format_bytes(self._budget_bytes)}: {free}, {format_bytes(self._config.margin_bytes)} of it left free"
        )
        log = logger.warning if now_bytes < before_bytes else logger.info
        log("%s", reason)
        self._owner.set_others(self._device, self._budget_bytes - now_bytes, reason)
