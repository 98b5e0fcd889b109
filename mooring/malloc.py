"""The C library's allocator in the server's process: what a client sent is given back once it has been read."""

from __future__ import annotations

import ctypes

__all__ = ["keep_little_free"]

_M_MMAP_THRESHOLD = -3  # malloc.h
_M_ARENA_MAX = -8
_MMAP_THRESHOLD_BYTES = 64 * 1024
_NUM_ARENAS = 2


def keep_little_free() -> None:
    """To be called before there are threads. Nothing happens where the C library is not glibc.

    gRPC's threads take turns at reading, each into an arena of its own, and glibc ceases to map large blocks one by
    one as soon as the first was freed: clients that flood the port would leave up to 180 MiB behind. With two
    arenas and a threshold that stays they leave 35 at most.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, _NUM_ARENAS)
        mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
