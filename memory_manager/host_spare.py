"""Host memory that is touched before it is needed: the memfd of the next host copy."""

from __future__ import annotations

import logging
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor

from memory_manager import host_pages
from memory_manager.background import stand_back
from memory_manager.host_copy_file import new_memfd
from memory_manager.kv_spec import PAGE_BYTES
from mooring.errors import InsufficientMemoryError
from mooring.units import format_bytes

__all__ = ["HostSpare"]

log = logging.getLogger(__name__)


class HostSpare:
    """At most one memfd, made physical page by page on a thread of its own.

    Not thread-safe but for that: its owner calls it from one thread.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "host-spare", initializer=stand_back)
        self._fd: int | None = None
        self._enough = threading.Event()
        self._touching: Future[int] | None = None
        self.num_bytes = 0

    def make(self, num_bytes: int) -> None:
        """Begins to make one of that size, in place of one that is there."""
        self.give_back()
        if num_bytes <= 0:
            return
        try:
            self._fd = new_memfd(num_bytes)
        except OSError as error:  # no descriptor is left: it goes without
            log.info("no host memory is made ready: %s", error)
            return
        self.num_bytes = num_bytes
        self._enough = threading.Event()
        self._touching = self._thread.submit(_touch, self._fd, num_bytes, self._enough)

    def take(self, num_bytes: int) -> tuple[int, int] | None:
        """A memfd of exactly that size, which is the caller's now, and how many of its first bytes are physical;
        None where the spare is too small."""
        if self._fd is None or num_bytes > self.num_bytes:
            return None
        physical_bytes = self._stop()
        fd, self._fd, self.num_bytes = self._fd, None, 0
        os.ftruncate(fd, num_bytes)
        return fd, min(physical_bytes, num_bytes)

    def give_back(self) -> int:
        """Returns the bytes that it held, or was about to."""
        held_bytes = self.num_bytes
        if self._fd is not None:
            self._stop()
            os.close(self._fd)
            self._fd, self.num_bytes = None, 0
        return held_bytes

    def wait(self) -> int:
        """Until all of it is physical, or the system had no more, or it was stopped; returns the bytes."""
        return 0 if self._touching is None else self._touching.result()

    def close(self) -> None:
        self.give_back()
        self._thread.shutdown()

    def _stop(self) -> int:
        self._enough.set()
        physical_bytes = self.wait()  # for the page that is being made
        self._touching = None
        return physical_bytes


def _touch(fd: int, num_bytes: int, enough: threading.Event) -> int:
    done = 0
    try:
        while done < num_bytes and not enough.is_set():
            length = min(PAGE_BYTES, num_bytes - done)
            host_pages.touch(fd, done, length)
            done += length
    except InsufficientMemoryError as error:
        log.info("no host memory is made ready beyond %s: %s", format_bytes(done), error.message)
    return done
