"""Settings of the C library's allocator in the server's process: data that a client sent is given back to the
system once it has been read."""

from __future__ import annotations

import ctypes

__all__ = ["keep_little_free"]

_M_MMAP_THRESHOLD = -3  # malloc.h
_M_ARENA_MAX = -8
_MMAP_THRESHOLD_BYTES = 64 * 1024
_NUM_ARENAS = 2


def keep_little_free() -> None:
    """Makes malloc give memory back to the system soon after it was freed.

    Call it before threads allocate: arenas that malloc has already made stay. gRPC's threads take turns at
    reading, each with an arena of its own, and glibc ceases to map large blocks one by one as soon as the
    first was freed: clients that flood the port would leave 180 MiB behind on two cores. With these settings
    they leave 35 (with a threshold of 128 KiB up to 115). Prompts of tens of KB pay for it in page faults,
    with about a tenth more of the server's CPU time. Does nothing if the C library has no ``mallopt``.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, _NUM_ARENAS)
        mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
