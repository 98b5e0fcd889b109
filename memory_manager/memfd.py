"""Memory files (memfd): anonymous memory behind a descriptor, which another process may be given to read."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from memory_manager import host_pages
from memory_manager.kv_spec import PAGE_BYTES, round_to_pages

__all__ = [
    "closed_on_error",
    "is_ours_alone",
    "is_sealed",
    "new_memfd",
    "open_to_read",
    "open_to_write",
    "refit",
]


def new_memfd(num_bytes: int) -> int:
    """A memfd of that size without memory behind it yet, which can be sealed."""
    created = os.memfd_create("mooring-host-copy", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        fd = _open_again(created, os.O_RDWR)  # who has this one open is counted, unlike the first
    finally:
        os.close(created)
    with closed_on_error(fd):
        os.ftruncate(fd, num_bytes)
    return fd


@contextmanager
def closed_on_error(fd: int) -> Iterator[None]:
    """A memfd that is on its way to its next owner: its memory would stay as long as it is open."""
    try:
        yield
    except BaseException:
        os.close(fd)
        raise


def open_to_read(fd: int) -> int:
    """The same memfd for those who may only read it."""
    return _open_again(fd, os.O_RDONLY)


def open_to_write(fd: int) -> int:
    """The same memfd for those who must map it writable, though they only read it."""
    return _open_again(fd, os.O_RDWR)


def is_sealed(fd: int) -> bool:
    """Whether a memfd cannot shrink: memory that shrank under a step would kill the worker."""
    try:
        return bool(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK)
    except OSError:
        return False  # not a memfd


def is_ours_alone(fd: int) -> bool:
    """Whether nobody but us has a memfd open or mapped, in whatever process, or on its way there; ``fd`` is the only
    one of ours. The system gives a lease for writing to nobody else (fcntl(2))."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:  # somebody has it; or the system knows no leases, and it counts as somebody's
        return False
    return True


def refit(fd: int, physical_bytes: int, num_bytes: int) -> int:
    """Makes a memfd that was filled and sealed before have at least so many bytes, and no memory beyond their pages.

    Args:
        physical_bytes: how many of its first bytes are physical.

    Returns:
        How many are now, in whole pages; or all.
    """
    kept_bytes = round_to_pages(num_bytes)
    size_bytes = os.fstat(fd).st_size
    if size_bytes < num_bytes:
        os.ftruncate(fd, num_bytes)
    elif size_bytes > kept_bytes:  # its seal keeps it from shrinking
        host_pages.punch_hole(fd, kept_bytes, size_bytes - kept_bytes)
    return min(physical_bytes - physical_bytes % PAGE_BYTES, num_bytes)


def _open_again(fd: int, flags: int) -> int:
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC)
