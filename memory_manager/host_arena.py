"""The arena in host memory: one memfd is the physical memory, ``mmap(MAP_FIXED)`` puts it under ranges.

It is the faithful twin of the CUDA arena (reserve, create, map, unmap, release each have their call
there), so the same code and the same costs are exercised on a machine without a GPU. Linux only.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from memory_manager.arena import DEFAULT_STOCK_LIMIT_BYTES, PagedArena, contiguous_runs
from memory_manager.kv_spec import PAGE_BYTES
from mooring.errors import InsufficientMemoryError
from mooring.units import format_bytes

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["HostArena", "HostMemory"]

_PROT_NONE, _PROT_READ_WRITE = 0, 3
_MAP_SHARED, _MAP_PRIVATE, _MAP_FIXED, _MAP_ANONYMOUS, _MAP_NORESERVE = 0x01, 0x02, 0x10, 0x20, 0x4000
_UNBACKED = _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE
_MADV_POPULATE_WRITE, _MADV_COLLAPSE = 23, 25
_FALLOC_FL_KEEP_SIZE, _FALLOC_FL_PUNCH_HOLE = 0x01, 0x02

_SMALL_PAGE_BYTES = mmap.PAGESIZE
_NO_HUGE_PAGE = (
    errno.EINVAL,
    errno.EAGAIN,
    errno.ENOMEM,
    errno.EBUSY,
)  # unknown before Linux 6.1, or short of them


class HostMemory:
    """Pages of one memfd; page ``i`` is its bytes ``[i * PAGE_BYTES, (i + 1) * PAGE_BYTES)``.

    ``create`` does nothing: a page of a memfd becomes physical at its first touch, which ``map`` does.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._libc = _libc()
        self._fd = os.memfd_create("mooring-arena", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, capacity_bytes)

    def reserve(self, num_bytes: int) -> int:
        # Aligned to pages, without which the system cannot map a page by one entry.
        start = self._mmap(None, num_bytes + PAGE_BYTES, _PROT_NONE, _UNBACKED, -1, 0)
        before = -start % PAGE_BYTES
        if before:
            self.unreserve(start, before)
        self.unreserve(start + before + num_bytes, PAGE_BYTES - before)
        return start + before

    def unreserve(self, address: int, num_bytes: int) -> None:
        if self._libc.munmap(address, num_bytes):
            raise _os_error("munmap", num_bytes)

    def create(self, first: int, num_pages: int) -> None:
        pass

    def destroy(self, first: int, num_pages: int) -> None:
        mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
        if self._libc.fallocate(self._fd, mode, first * PAGE_BYTES, num_pages * PAGE_BYTES):
            raise _os_error("fallocate(PUNCH_HOLE)", num_pages * PAGE_BYTES)

    def map(self, address: int, pages: Sequence[int]) -> None:
        at = address
        try:
            for first, length in contiguous_runs(pages):
                num_bytes = length * PAGE_BYTES
                flags = _MAP_SHARED | _MAP_FIXED
                self._mmap(at, num_bytes, _PROT_READ_WRITE, flags, self._fd, first * PAGE_BYTES)
                self._touch(at, num_bytes)
                at += num_bytes
        except BaseException:  # an interrupt too must not leave half a run behind
            self.unmap(address, len(pages))
            raise

    def unmap(self, address: int, num_pages: int) -> None:
        self._mmap(address, num_pages * PAGE_BYTES, _PROT_NONE, _UNBACKED | _MAP_FIXED, -1, 0)

    def tensor(self, address: int, num_bytes: int) -> Tensor:
        import torch  # the server process reads this module and never needs torch

        memory = (ctypes.c_uint8 * num_bytes).from_address(address)
        return torch.frombuffer(memory, dtype=torch.uint8)

    def close(self) -> None:
        os.close(self._fd)

    def allocated_bytes(self) -> int:
        """What the system has behind the memfd, by its own count."""
        return os.fstat(self._fd).st_blocks * 512

    def _touch(self, address: int, num_bytes: int) -> None:
        """Makes pages physical and fills in the page tables now, so that no step pays for it and a shortage
        is an error here rather than a SIGBUS at some later store.

        One page at a time: the first touch holds the process's mapping lock, and the step thread's own small
        commits get in between.
        """
        for page in range(address, address + num_bytes, PAGE_BYTES):
            # A page of which something exists can be collapsed into one huge page: less than half the time
            # of making 512 small ones, and mapping it again is then one entry in place of 512 (measured: 128
            # MiB in 0.3 ms rather than 9). Where the system has no huge page left, small ones do.
            self._populate(page, _SMALL_PAGE_BYTES)
            failed = self._libc.madvise(page, PAGE_BYTES, _MADV_COLLAPSE)
            if failed and ctypes.get_errno() not in _NO_HUGE_PAGE:
                raise _os_error("madvise(COLLAPSE)", PAGE_BYTES)
            self._populate(page, PAGE_BYTES)

    def _populate(self, address: int, num_bytes: int) -> None:
        failed = self._libc.madvise(address, num_bytes, _MADV_POPULATE_WRITE)
        # EINVAL before Linux 5.14: pages are then touched by their first store.
        if failed and ctypes.get_errno() != errno.EINVAL:
            raise _os_error("madvise(POPULATE_WRITE)", num_bytes)

    def _mmap(
        self, address: int | None, num_bytes: int, protection: int, flags: int, fd: int, offset: int
    ) -> int:
        result = self._libc.mmap(address, num_bytes, protection, flags, fd, offset)
        if result == ctypes.c_void_p(-1).value:
            raise _os_error("mmap", num_bytes)
        return int(result or 0)


class HostArena(PagedArena):
    """An arena of host memory.

    Args:
        capacity_bytes: most physical memory at any time; rounded down to pages.
        stock_limit_bytes: released pages kept for the next commit. They count in the machine's memory
            and not in this process's resident set; beyond this limit they leave at once.
    """

    def __init__(self, capacity_bytes: int, stock_limit_bytes: int = DEFAULT_STOCK_LIMIT_BYTES) -> None:
        self._host_memory = HostMemory(capacity_bytes)
        super().__init__(self._host_memory, capacity_bytes, stock_limit_bytes)

    def allocated_bytes(self) -> int:
        """Physical memory by the system's own count: committed and stock, nothing else."""
        return self._host_memory.allocated_bytes()


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    size, pointer, integer, offset = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    libc.mmap.argtypes = [pointer, size, integer, integer, integer, offset]
    libc.mmap.restype = pointer
    libc.munmap.argtypes = [pointer, size]
    libc.madvise.argtypes = [pointer, size, integer]
    libc.fallocate.argtypes = [integer, integer, offset, offset]
    return libc


def _os_error(call: str, num_bytes: int) -> Exception:
    """The error for the ``errno`` that a libc call has just left."""
    code = ctypes.get_errno()
    # EFAULT is how populating a memfd says that its page could not be made (a full cgroup or tmpfs).
    if code in (errno.ENOMEM, errno.ENOSPC, errno.EFAULT, errno.EAGAIN):
        reason = os.strerror(code)
        return InsufficientMemoryError(f"{call} of {format_bytes(num_bytes)} failed: {reason}")
    return OSError(code, f"{call} of {num_bytes} bytes: {os.strerror(code)}")
