"""The arena of a device, by the device's name."""

from __future__ import annotations

from memory_manager.arena.cuda_arena import CudaArena
from memory_manager.arena.host_arena import HostArena
from memory_manager.arena.protocol import Arena
from mooring.errors import ConfigurationError

__all__ = ["arena_on"]


def arena_on(
    device: str,
    capacity_bytes: int,
    stock_limit_bytes: int,
    ready_bytes: int = 0,
    limit_bytes: int | None = None,
) -> Arena:
    """Makes an arena in the memory of a device: ``cpu``, ``cpu:1`` (the same memory) or ``cuda:0``.
    ``PagedArena`` describes the other arguments.

    Raises:
        ConfigurationError: no such kind of device, no such GPU, or no driver or bindings to reach it with.
    """
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or not (index or "0").isdecimal():
        raise ConfigurationError(f"a device is cpu, cpu:1, cuda:0 and so on, not {device!r}", param="device")
    if kind == "cuda":
        return CudaArena(capacity_bytes, int(index or 0), stock_limit_bytes, ready_bytes, limit_bytes)
    return HostArena(capacity_bytes, stock_limit_bytes, ready_bytes, limit_bytes)
