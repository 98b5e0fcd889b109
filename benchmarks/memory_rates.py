"""Rates of this machine's memory, measured beside what is compared with them, and the memory that a process
holds."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

__all__ = ["CopyCeiling", "PeakMemory", "ReadCeiling", "anonymous_bytes", "held_bytes"]


class CopyCeiling:
    """Copies one touched buffer into another with two threads.

    Args:
        num_bytes: size of each buffer.
    """

    def __init__(self, num_bytes: int) -> None:
        self._source = _touched(num_bytes)
        self._target = _touched(num_bytes)

    def measure(self) -> float:
        """Bytes per second."""
        source, target = self._source.ctypes.data, self._target.ctypes.data

        def copy(start: int, stop: int) -> None:
            # The C library writes past the caches if so much is copied; numpy is up to half as slow again.
            ctypes.memmove(target + start, source + start, stop - start)

        return _rate(self._target.size, copy)


class ReadCeiling:
    """Reads a file that the page cache holds into a touched buffer with two threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._target = _touched(path.stat().st_size)

    def measure(self) -> float:
        """Bytes per second."""
        fd = os.open(self._path, os.O_RDONLY)
        target = self._target.data

        def read(start: int, stop: int) -> None:
            while start < stop:
                start += os.preadv(fd, [target[start:stop]], start)

        try:
            return _rate(self._target.size, read)
        finally:
            os.close(fd)


class PeakMemory:
    """Finds the most memory that this process holds while the block runs; see ``held_bytes``. Reads as often
    as it can, so time nothing within the block."""

    def __init__(self) -> None:
        self.before_bytes = self.peak_bytes = self.after_bytes = 0
        self._done = threading.Event()

    def __enter__(self) -> PeakMemory:
        self.before_bytes = self.peak_bytes = held_bytes(os.getpid())
        self._thread = threading.Thread(target=self._run, name="peak-memory")
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._done.set()
        self._thread.join()
        self.after_bytes = held_bytes(os.getpid())

    def _run(self) -> None:
        while not self._done.wait(0.002):
            self.peak_bytes = max(self.peak_bytes, held_bytes(os.getpid()))


def held_bytes(*pids: int) -> int:
    """Bytes of the processes' anonymous memory and of their memfds, by the system's own count. A memfd counts
    once, however many of the processes have it open. A process that is gone holds nothing."""
    memfds: dict[int, int] = {}
    num_bytes = 0
    for pid in pids:
        num_bytes += anonymous_bytes(pid)
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            memfds |= _memfds(Path(f"/proc/{pid}/fd"))
    return num_bytes + sum(memfds.values())


def anonymous_bytes(pid: int) -> int:
    """Resident memory of the process that belongs to no file and no memfd; 0 if the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    for line in lines:
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    return 0


def _memfds(folder: Path) -> dict[int, int]:
    """Bytes of each memfd, by inode."""
    found = {}
    for fd in os.listdir(folder):
        try:
            if os.readlink(folder / fd).startswith("/memfd:"):
                status = os.stat(folder / fd)
                found[status.st_ino] = status.st_blocks * 512
        except FileNotFoundError:  # the descriptor was closed meanwhile
            continue
    return found


def _touched(num_bytes: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    memory = mmap.mmap(-1, num_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    array = np.frombuffer(memory, np.uint8)
    array.fill(1)
    return array


def _rate(num_bytes: int, work: Callable[[int, int], None]) -> float:
    """Bytes per second of ``work(start, stop)`` over everything, half of it on each of two threads."""
    middle = num_bytes // 2
    threads = [threading.Thread(target=work, args=half) for half in ((0, middle), (middle, num_bytes))]
    started_s = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return num_bytes / (time.perf_counter() - started_s)
