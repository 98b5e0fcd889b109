"""Host memory that is touched before it is needed: the memfd for the next host copy."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from memory_manager import host_pages
from memory_manager.cores import stand_back
from memory_manager.kv_spec import PAGE_BYTES
from memory_manager.memfd import closed_on_error, new_memfd
from mooring.errors import InsufficientMemoryError
from mooring.units import format_bytes

__all__ = ["HostSpare"]

log = logging.getLogger(__name__)


class _Touching:
    """One memfd that is being made physical, through a descriptor of its own, so that the owner of the memfd
    can end this without waiting.

    The thread that does it stands back, so on busy cores a single page may take long, and otherwise the event
    loop would wait for it.
    """

    def __init__(self, fd: int, num_bytes: int, wait_for_cores: Callable[[], None]) -> None:
        self._fd = os.dup(fd)
        self._num_bytes = num_bytes
        self._wait_for_cores = wait_for_cores
        self._enough = threading.Event()
        self.done_bytes = 0

    def stop(self) -> None:
        """Ends the work after the page that is being made."""
        self._enough.set()

    def run(self) -> None:
        try:
            while self.done_bytes < self._num_bytes:
                self._wait_for_cores()
                if self._enough.is_set():
                    return
                length = min(PAGE_BYTES, self._num_bytes - self.done_bytes)
                host_pages.touch(self._fd, self.done_bytes, length)
                self.done_bytes += length
        except (InsufficientMemoryError, OSError) as error:
            # If the work was to end, the memfd may have been cut or sealed while the last page was made.
            if not self._enough.is_set():
                log.info("no host memory is made ready beyond %s: %s", format_bytes(self.done_bytes), error)
        finally:
            os.close(self._fd)


class HostSpare:
    """At most one memfd, made physical page by page on a thread of its own.

    Apart from that thread not thread-safe: its owner calls it from one thread. Only ``wait`` and ``close``
    block.

    Args:
        wait_for_cores: called by the thread before each page.
    """

    def __init__(self, wait_for_cores: Callable[[], None] = lambda: None) -> None:
        self._wait_for_cores = wait_for_cores
        self._thread = ThreadPoolExecutor(1, "host-spare", initializer=stand_back)
        self._fd: int | None = None
        self._touching: _Touching | None = None
        self._touched: Future[None] | None = None
        self.num_bytes = 0

    def make(self, num_bytes: int) -> None:
        """Begins to make a spare of that size, instead of one that is there."""
        self.give_back()
        if num_bytes <= 0:
            return
        try:
            self._fd = new_memfd(num_bytes)
        except OSError as error:  # no descriptor is left: there is no spare then
            log.info("no host memory is made ready: %s", error)
            return
        self.num_bytes = num_bytes
        self._touching = _Touching(self._fd, num_bytes, self._wait_for_cores)
        self._touched = self._thread.submit(self._touching.run)

    def take(self, num_bytes: int) -> tuple[int, int] | None:
        """Gives away a memfd of exactly that size, and how many of its first bytes are physical; None if the
        spare is too small."""
        if num_bytes > self.num_bytes:
            return None
        ended = self._end()
        if ended is None:
            return None
        fd, physical_bytes = ended
        with closed_on_error(fd):
            os.ftruncate(fd, num_bytes)
        return fd, min(physical_bytes, num_bytes)

    def give_back(self) -> int:
        """Gives the spare back to the system. Returns the bytes that it had, or was to have; a page that is
        just being made follows later."""
        held_bytes = self.num_bytes
        ended = self._end()
        if ended is not None:
            os.close(ended[0])
        return held_bytes

    def wait(self) -> None:
        """Waits until the whole spare is physical, or the system had no more memory, or it was ended."""
        if self._touched is not None:
            self._touched.result()

    def close(self) -> None:
        self.give_back()
        self._thread.shutdown()

    def _end(self) -> tuple[int, int] | None:
        """Ends the spare; returns the memfd, which the caller owns now, and how many of its first bytes are
        physical; None if there is no spare."""
        if self._fd is None or self._touching is None:
            return None
        self._touching.stop()
        fd, physical_bytes = self._fd, self._touching.done_bytes
        self._fd = self._touching = None
        self.num_bytes = 0
        return fd, physical_bytes
