"""The arena in host memory: one memfd is the physical memory, ``mmap(MAP_FIXED)`` puts it under ranges.

This arena is the faithful twin of the CUDA arena (reserve, create, map, unmap and release each have their
call there), so the same code and the same costs are exercised on a machine without a GPU. Linux only.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from memory_manager import host_pages
from memory_manager.arena.paged_arena import PagedArena
from memory_manager.arena.protocol import DEFAULT_STOCK_LIMIT_BYTES, contiguous_runs
from memory_manager.kv_spec import PAGE_BYTES

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["HostArena", "HostMemory"]


class HostMemory:
    """Pages of one memfd; page ``i`` is its bytes ``[i * PAGE_BYTES, (i + 1) * PAGE_BYTES)``."""

    def __init__(self, capacity_bytes: int) -> None:
        self._fd = os.memfd_create("mooring-arena", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, capacity_bytes)

    def reserve(self, num_bytes: int) -> int:
        return host_pages.reserve(num_bytes)

    def unreserve(self, address: int, num_bytes: int) -> None:
        host_pages.unreserve(address, num_bytes)

    def create(self, first: int, num_pages: int) -> None:
        try:
            host_pages.touch(self._fd, first * PAGE_BYTES, num_pages * PAGE_BYTES)
        except BaseException:  # all or nothing, whatever stopped it
            self.destroy(first, num_pages)
            raise

    def destroy(self, first: int, num_pages: int) -> None:
        host_pages.punch_hole(self._fd, first * PAGE_BYTES, num_pages * PAGE_BYTES)

    def map(self, address: int, pages: Sequence[int]) -> None:
        at = address
        try:
            for first, length in contiguous_runs(pages):
                num_bytes = length * PAGE_BYTES
                host_pages.map_file(at, num_bytes, self._fd, first * PAGE_BYTES, writable=True)
                at += num_bytes
            host_pages.populate(address, len(pages) * PAGE_BYTES, writable=True)
        except BaseException:  # an interrupt too must not leave half a run behind
            self.unmap(address, len(pages))
            raise

    def unmap(self, address: int, num_pages: int) -> None:
        host_pages.unback(address, num_pages * PAGE_BYTES)

    def lend(self, address: int, num_bytes: int, descriptor: int) -> None:
        try:
            host_pages.map_file(address, num_bytes, descriptor, writable=False)
            host_pages.populate(address, num_bytes, writable=False)
        except BaseException:  # an interrupt too
            host_pages.unback(address, num_bytes)
            raise

    def tensor(self, address: int, num_bytes: int) -> Tensor:
        import torch  # the server process imports this module and never needs torch

        memory = (ctypes.c_uint8 * num_bytes).from_address(address)
        return torch.frombuffer(memory, dtype=torch.uint8)

    def close(self) -> None:
        os.close(self._fd)

    def allocated_bytes(self) -> int:
        """Bytes of physical memory behind the memfd, as the system counts them."""
        return os.fstat(self._fd).st_blocks * 512


class HostArena(PagedArena):
    """An arena of host memory.

    Args:
        capacity_bytes: most physical memory at any time; rounded down to pages.
        stock_limit_bytes: released pages kept for the next commit. They count in the machine's memory
            and not in this process's resident set; beyond this limit they leave at once.
        ready_bytes: see ``PagedArena``.
        limit_bytes: see ``PagedArena``.
    """

    def __init__(
        self,
        capacity_bytes: int,
        stock_limit_bytes: int = DEFAULT_STOCK_LIMIT_BYTES,
        ready_bytes: int = 0,
        limit_bytes: int | None = None,
    ) -> None:
        self._host_memory = HostMemory(capacity_bytes)
        super().__init__(self._host_memory, capacity_bytes, stock_limit_bytes, ready_bytes, limit_bytes)

    def allocated_bytes(self) -> int:
        """Bytes of the arena's own physical memory, as the system counts them: committed pages that are not
        lent, and stock."""
        return self._host_memory.allocated_bytes()
