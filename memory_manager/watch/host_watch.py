"""Watches the host's memory for the sake of other processes: if it stays short, host copies of weights are
given up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from memory_manager.watch.devices import DeviceReader
from memory_manager.watch.others_rule import OthersConfig

__all__ = ["HostWatch"]


class HostWatch:
    """Reads the host's memory again and again.

    The host cache's budget bounds how much of it we take. What other processes take beside that is seen here
    only: no device's ledger counts host copies, and a model that was put to sleep for other processes leaves
    its copy behind.

    Args:
        reader: reads the host; it blocks, so it is called on a thread.
        give_up: told how many bytes of copies to give back.
    """

    def __init__(self, reader: DeviceReader, give_up: Callable[[int], None], config: OthersConfig) -> None:
        self._reader = reader
        self._give_up = give_up
        self._config = config
        self._was_short = False

    async def run(self) -> None:
        """Reads the host every ``period_s`` until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(self._config.period_s)

    async def look(self) -> None:
        """Reads the host once. Copies are given up if the host was short at the reading before too: on a CPU
        device KV and models have given way in between, and what they gave was too little."""
        memory = await asyncio.to_thread(self._reader.read)
        margin_bytes = self._config.margin_bytes
        shortage_bytes = 0 if memory is None else margin_bytes - memory.free_bytes
        is_short = shortage_bytes > min(self._config.step_bytes, margin_bytes)
        if is_short and self._was_short:
            self._give_up(shortage_bytes)
        self._was_short = is_short
