"""The memory of one host copy while it is filled: a memfd, mapped for the time of the reading and then sealed.

The file is read straight into place: the system copies each byte once, from its page cache into pages that
were touched before, so a second copy of the weights exists at no moment.

Others are given the memfd to read. Once nobody has it any more, and the system itself says so, it may be filled with
something else: to touch fresh pages takes several times as long as to read into these.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from memory_manager import host_pages
from memory_manager.kv_spec import PAGE_BYTES, round_to_pages
from memory_manager.ports import ArtifactRef
from mooring.errors import ArtifactError, InsufficientMemoryError
from mooring.units import format_bytes

__all__ = ["HostCopyFile", "open_artifact"]

_READ_BYTES = 1 << 20  # at once: a step that wants the core meanwhile waits for it


class HostCopyFile:
    """A memfd that is being filled from an artifact's file.

    Args:
        fd: of ``ref.num_bytes`` or more; owned from here on, until ``seal`` gives it back.
        physical_bytes: how many of its first bytes are physical already.
        wait_for_cores: called before each piece that is read or made physical, by the thread that does it.

    Raises:
        InsufficientMemoryError: there are no addresses for it.
    """

    def __init__(
        self,
        ref: ArtifactRef,
        fd: int,
        physical_bytes: int,
        wait_for_cores: Callable[[], None] = lambda: None,
    ) -> None:
        self._ref = ref
        self._wait_for_cores = wait_for_cores
        self._fd = fd
        self._physical_bytes = physical_bytes
        self._num_bytes = 0  # mapped
        try:
            self._address = host_pages.reserve(round_to_pages(ref.num_bytes))
            self._num_bytes = round_to_pages(ref.num_bytes)
            host_pages.map_file(self._address, ref.num_bytes, fd, writable=True)
            host_pages.populate(self._address, physical_bytes, writable=True)
        except BaseException:  # whatever stopped it, the descriptor goes, and a mapping would keep its memory
            self.abandon()
            raise

    def fill(self, source: int, start: int, stop: int) -> None:
        """Reads the bytes ``[start, stop)`` of ``source`` into place; ``start`` at a page. Any thread, each its
        own bytes.

        Raises:
            ArtifactError: the file is unreadable or ends before.
            InsufficientMemoryError: the host has no memory for it.
        """
        target = memoryview((ctypes.c_char * (stop - start)).from_address(self._address + start)).cast("B")
        done = max(0, min(self._physical_bytes, stop) - start)
        self._read(source, target[:done], start)
        while done < len(target):
            # Made physical before the system writes there: a shortage is an error then, not a SIGBUS. And a
            # page at a time, so that it is still in the processor's cache when it is read into.
            length = min(PAGE_BYTES, len(target) - done)
            self._make_physical(start + done, length)
            self._read(source, target[done : done + length], start + done)
            done += length

    def seal(self) -> int:
        """Ends the filling; returns the descriptor, whose memory nobody can take away any more."""
        self._unmap()
        fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        return self._fd

    def abandon(self) -> None:
        """Gives up a copy that failed. No thread fills it any more."""
        self._unmap()
        os.close(self._fd)

    def _unmap(self) -> None:
        if self._num_bytes:
            host_pages.unreserve(self._address, self._num_bytes)
            self._num_bytes = 0

    def _make_physical(self, offset: int, num_bytes: int) -> None:
        self._wait_for_cores()
        try:
            host_pages.make_physical(self._address + offset, num_bytes)
        except InsufficientMemoryError as error:
            raise InsufficientMemoryError(
                f"the host has no memory for {self._ref.key} of {format_bytes(self._ref.num_bytes)}: "
                "lower the host cache's budget"
            ) from error

    def _read(self, source: int, target: memoryview, offset: int) -> None:
        done = 0
        while done < len(target):
            self._wait_for_cores()
            try:
                num_read = os.preadv(source, [target[done : done + _READ_BYTES]], offset + done)
            except OSError as error:
                raise _unreadable(self._ref.weights_path, error) from error
            if num_read == 0:
                raise ArtifactError(
                    f"{self._ref.weights_path} shrank to {offset + done} bytes while it was read"
                )
            done += num_read


def open_artifact(ref: ArtifactRef) -> int:
    """Opens the packed file, whole and of the promised size.

    Raises:
        ArtifactError: it is missing, unreadable or of another size.
    """
    try:
        source = os.open(ref.weights_path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(ref.weights_path, error) from error
    found_bytes = os.fstat(source).st_size
    if found_bytes != ref.num_bytes:
        os.close(source)
        raise ArtifactError(
            f"{ref.weights_path} has {found_bytes} bytes and its manifest says {ref.num_bytes}: pack it again"
        )
    os.posix_fadvise(source, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    return source


def _unreadable(path: Path, error: OSError) -> ArtifactError:
    return ArtifactError(f"{path} cannot be read: {error.strerror}")
