"""Mapping of host memory: addresses, the pages of memfds, and what makes them physical. Linux only.

The first touch of a page is what costs (measured: 0.4 GB/s; mapping touched pages again: hundreds of GB/s).
So memory is touched before it is needed, and from then on only mapped.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from functools import cache

from memory_manager.kv_spec import PAGE_BYTES
from mooring.errors import InsufficientMemoryError
from mooring.units import MIB, format_bytes

__all__ = [
    "make_physical",
    "map_file",
    "move_mapping",
    "populate",
    "punch_hole",
    "reserve",
    "touch",
    "unback",
    "unpopulate",
    "unreserve",
]

_PROT_NONE, _PROT_READ, _PROT_READ_WRITE = 0, 1, 3
_MAP_SHARED, _MAP_PRIVATE, _MAP_FIXED, _MAP_ANONYMOUS, _MAP_NORESERVE = 0x01, 0x02, 0x10, 0x20, 0x4000
_UNBACKED = _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE
_MADV_DONTNEED, _MADV_POPULATE_READ, _MADV_POPULATE_WRITE, _MADV_COLLAPSE = 4, 22, 23, 25
_MREMAP_MAYMOVE, _MREMAP_FIXED = 0x1, 0x2
_FALLOC_FL_KEEP_SIZE, _FALLOC_FL_PUNCH_HOLE = 0x01, 0x02

_SMALL_PAGE_BYTES = mmap.PAGESIZE
_POPULATE_BYTES = 32 * MIB  # holds the process's mapping lock for well under a millisecond
# Unknown before Linux 6.1, or the system is short of huge pages.
_NO_HUGE_PAGE = (errno.EINVAL, errno.EAGAIN, errno.ENOMEM, errno.EBUSY)


def reserve(num_bytes: int) -> int:
    """Reserves addresses without memory behind them; returns the first. It is aligned to ``PAGE_BYTES``:
    otherwise the system could not map a page by a single entry of its tables.

    Raises:
        InsufficientMemoryError: the system has no such addresses.
    """
    start = _mmap(None, num_bytes + PAGE_BYTES, _PROT_NONE, _UNBACKED, -1, 0)
    before = -start % PAGE_BYTES
    if before:
        unreserve(start, before)
    unreserve(start + before + num_bytes, PAGE_BYTES - before)
    return start + before


def unreserve(address: int, num_bytes: int) -> None:
    """Gives addresses back, with whatever is mapped there."""
    if _libc().munmap(address, num_bytes):
        raise _os_error("munmap", num_bytes)


def unback(address: int, num_bytes: int) -> None:
    """Takes the memory away from addresses that stay reserved."""
    _mmap(address, num_bytes, _PROT_NONE, _UNBACKED | _MAP_FIXED, -1, 0)


def map_file(address: int, num_bytes: int, fd: int, offset: int = 0, *, writable: bool) -> None:
    """Puts bytes of a file under reserved addresses. The mapping is shared even if it is read-only: pages of
    a private one cannot be pinned without becoming copies."""
    protection = _PROT_READ_WRITE if writable else _PROT_READ
    _mmap(address, num_bytes, protection, _MAP_SHARED | _MAP_FIXED, fd, offset)


def move_mapping(old_address: int, old_bytes: int, new_address: int, new_bytes: int) -> None:
    """Moves a mapping of a file to other reserved addresses, at which it may be longer. Its protection stays
    as it was, whatever seals the file has got since. The old addresses are no longer reserved afterwards.

    Raises:
        InsufficientMemoryError: the system has no memory for its tables.
    """
    flags = _MREMAP_MAYMOVE | _MREMAP_FIXED
    moved = _libc().mremap(old_address, old_bytes, new_bytes, flags, ctypes.c_void_p(new_address))
    if moved == ctypes.c_void_p(-1).value:
        raise _os_error("mremap", new_bytes)


def unpopulate(address: int, num_bytes: int) -> None:
    """Empties the page tables of a shared mapping of a file. The contents stay, and no longer count as this
    process's resident memory."""
    if _libc().madvise(address, num_bytes, _MADV_DONTNEED):
        raise _os_error("madvise(DONTNEED)", num_bytes)


def populate(address: int, num_bytes: int, *, writable: bool) -> None:
    """Fills in the page tables now, so that no step pays for it and a shortage is an error here rather than a
    SIGBUS at some later access.

    Raises:
        InsufficientMemoryError: the system has no memory for the pages or their tables.
    """
    advice = _MADV_POPULATE_WRITE if writable else _MADV_POPULATE_READ
    for start in range(address, address + num_bytes, _POPULATE_BYTES):
        length = min(_POPULATE_BYTES, address + num_bytes - start)
        # EINVAL before Linux 5.14: pages are then mapped by their first access.
        if _libc().madvise(start, length, advice) and ctypes.get_errno() != errno.EINVAL:
            raise _os_error("madvise(POPULATE)", length)


def make_physical(address: int, num_bytes: int) -> None:
    """Makes one page that is mapped writable physical, or only its first ``num_bytes``. A whole page becomes
    a huge page if the system has one left. Quick if the page is physical already.

    Raises:
        InsufficientMemoryError: the system has no more memory.
    """
    if num_bytes == PAGE_BYTES:
        _make_huge(address)
    populate(address, num_bytes, writable=True)


def touch(fd: int, offset: int, num_bytes: int) -> None:
    """Makes pages of a memfd physical, as huge pages if the system has them; they are mapped nowhere
    afterwards. ``offset`` is a multiple of ``PAGE_BYTES``.

    Works one page at a time: each takes milliseconds, and other threads' mappings get in between.

    Raises:
        InsufficientMemoryError: the system has no more memory; some of the pages may be physical now.
    """
    scratch = reserve(PAGE_BYTES)
    try:
        for start in range(offset, offset + num_bytes, PAGE_BYTES):
            length = min(PAGE_BYTES, offset + num_bytes - start)
            map_file(scratch, length, fd, start, writable=True)
            make_physical(scratch, length)
    finally:
        unreserve(scratch, PAGE_BYTES)


def punch_hole(fd: int, offset: int, num_bytes: int) -> None:
    """Gives pages of a memfd back to the system."""
    if _libc().fallocate(fd, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, offset, num_bytes):
        raise _os_error("fallocate(PUNCH_HOLE)", num_bytes)


def _make_huge(address: int) -> None:
    """Collapses a page into one huge page, after touching its first bytes, which that takes. This needs less
    than half the time of making 512 small pages, and mapping the page again then takes one entry instead of
    512 (measured: 128 MiB in 0.04 ms rather than 9). If the system has no huge page left, small ones do."""
    populate(address, _SMALL_PAGE_BYTES, writable=True)
    failed = _libc().madvise(address, PAGE_BYTES, _MADV_COLLAPSE)
    if failed and ctypes.get_errno() not in _NO_HUGE_PAGE:
        raise _os_error("madvise(COLLAPSE)", PAGE_BYTES)


def _mmap(address: int | None, num_bytes: int, protection: int, flags: int, fd: int, offset: int) -> int:
    result = _libc().mmap(address, num_bytes, protection, flags, fd, offset)
    if result == ctypes.c_void_p(-1).value:
        raise _os_error("mmap", num_bytes)
    return int(result or 0)


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    size, pointer, integer, offset = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    libc.mmap.argtypes = [pointer, size, integer, integer, integer, offset]
    libc.mmap.restype = pointer
    libc.munmap.argtypes = [pointer, size]
    libc.mremap.argtypes = [pointer, size, size, integer, pointer]
    libc.mremap.restype = pointer
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
