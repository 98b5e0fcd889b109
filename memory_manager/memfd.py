"""Memory files (memfd): anonymous memory behind a descriptor, which another process may be given to read."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = [
    "F_SEAL_FUTURE_WRITE",
    "closed_on_error",
    "is_ours_alone",
    "is_sealed",
    "new_memfd",
    "open_to_read",
    "open_to_write",
]


F_SEAL_FUTURE_WRITE = 0x0010
"""The seal against all writes but those through a mapping that is writable already; ``fcntl`` has no name for
it."""


def new_memfd(num_bytes: int) -> int:
    """Makes a memfd of that size, without memory behind it yet, which can be sealed."""
    created = os.memfd_create("mooring-host-copy", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        fd = _open_again(created, os.O_RDWR)  # the system counts who has this one open, unlike the first
    finally:
        os.close(created)
    with closed_on_error(fd):
        os.ftruncate(fd, num_bytes)
    return fd


@contextmanager
def closed_on_error(fd: int) -> Iterator[None]:
    """Closes a memfd that is on its way to its next owner if the block fails: otherwise its memory would stay
    as long as it is open."""
    try:
        yield
    except BaseException:
        os.close(fd)
        raise


def open_to_read(fd: int) -> int:
    """Opens the memfd anew, for holders that may only read it."""
    return _open_again(fd, os.O_RDONLY)


def open_to_write(fd: int) -> int:
    """Opens the memfd anew, for holders that must map it writable, though they only read it."""
    return _open_again(fd, os.O_RDWR)


def is_sealed(fd: int) -> bool:
    """Whether a memfd keeps its bytes while others have it, so that those who map it may rely on them. Memory
    that shrank under a step would kill the worker."""
    try:
        return bool(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & (fcntl.F_SEAL_SHRINK | F_SEAL_FUTURE_WRITE))
    except OSError:
        return False  # not a memfd


def is_ours_alone(fd: int) -> bool:
    """Whether no other process has a memfd open or mapped, or is about to be given it. ``fd`` must be our
    only descriptor of it, by which our mappings were made. Otherwise the system does not grant the lease for
    writing that is asked for here (fcntl(2))."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:  # another process has it; or the system knows no leases, which counts as the same
        return False
    return True


def _open_again(fd: int, flags: int) -> int:
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC)
