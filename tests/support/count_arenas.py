"""Prints how many arenas the C library has after eight threads allocated, and how many of ten blocks of 64 KiB it
mapped one by one after a larger one was freed; with an argument, after ``keep_little_free``.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading

from mooring.server.malloc import keep_little_free

NUM_THREADS = 8


class MallInfo2(ctypes.Structure):
    """Of malloc.h."""

    _fields_ = (
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")),
        *((name, ctypes.c_size_t) for name in ("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")),
    )


libc = ctypes.CDLL(None)
libc.mallinfo2.restype = MallInfo2
libc.malloc.restype = libc.fdopen.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = libc.fclose.argtypes = [ctypes.c_void_p]
libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]


def num_mapped() -> int:
    libc.free(libc.malloc(16 << 20))
    before: int = libc.mallinfo2().hblks
    for _ in range(10):
        libc.malloc(64 << 10)
    after: int = libc.mallinfo2().hblks
    return after - before


def num_arenas() -> int:
    together = threading.Barrier(NUM_THREADS)

    def allocate() -> None:
        block = libc.malloc(5000)
        together.wait()
        libc.free(block)

    threads = [threading.Thread(target=allocate) for _ in range(NUM_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    fd = os.memfd_create("malloc_info")
    file = libc.fdopen(os.dup(fd), b"w")
    libc.malloc_info(0, file)
    libc.fclose(file)
    return os.pread(fd, 1 << 20, 0).count(b"<heap nr")


if __name__ == "__main__":
    if sys.argv[1:]:
        keep_little_free()
    mapped = num_mapped()
    print(num_arenas(), mapped)
