"""An arena whose memory is taken once and never moves, like that of an engine with a pool of fixed size."""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

from memory_manager.arena.protocol import AddressRange
from memory_manager.kv_spec import PAGE_BYTES, round_to_pages
from mooring.errors import InsufficientMemoryError

__all__ = ["FixedArena"]


class FixedArena:
    """``memory_manager.arena.protocol.Arena`` over one touched buffer; committing and releasing do nothing.

    Args:
        capacity_bytes: bytes for all ranges that are ever reserved; rounded up to pages.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = round_to_pages(capacity_bytes)
        self.page_bytes = PAGE_BYTES
        self.limit_bytes = self.committed_bytes = self.capacity_bytes
        self.stock_bytes = 0
        memory = mmap.mmap(-1, self.capacity_bytes + PAGE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
        whole = torch.frombuffer(memory, dtype=torch.uint8)
        start = -whole.data_ptr() % PAGE_BYTES
        self._memory = whole[start : start + self.capacity_bytes]
        self._memory.zero_()
        self._reserved_bytes = 0

    def reserve(self, num_bytes: int) -> AddressRange:
        num_bytes = round_to_pages(num_bytes)
        if self._reserved_bytes + num_bytes > self.capacity_bytes:
            raise InsufficientMemoryError("the fixed arena has no room for another range")
        addresses = AddressRange(self._memory.data_ptr() + self._reserved_bytes, num_bytes)
        self._reserved_bytes += num_bytes
        return addresses

    def commit(self, addresses: AddressRange, first_page: int, num_pages: int) -> None:
        pass

    def release(self, addresses: AddressRange, first_page: int, num_pages: int) -> None:
        pass

    def lend(self, addresses: AddressRange, descriptor: int, num_bytes: int) -> None:
        raise InsufficientMemoryError("the fixed arena borrows nothing: weights are copied into it")

    def tensor(self, addresses: AddressRange) -> Tensor:
        start = addresses.address - self._memory.data_ptr()
        return self._memory[start : start + addresses.num_bytes]

    def free_range(self, addresses: AddressRange) -> None:
        pass

    def trim(self) -> int:
        return 0

    def set_limit(self, num_bytes: int) -> int:
        return 0

    def close(self) -> None:
        pass
