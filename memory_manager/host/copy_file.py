"""One host copy while its memory is filled, until it is sealed.

The file is read straight into place: the system copies each byte once, from its page cache into pages that
were touched before, so a second copy of the weights exists at no moment.

Workers are given the memfd to read. Once no other process has it any more, and the system itself says so, it
may be filled with another artifact: touching fresh pages takes several times as long as reading into these.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

from memory_manager import host_pages
from memory_manager.host.copy_memory import CopyMemory
from memory_manager.kv_spec import PAGE_BYTES
from memory_manager.ports import ArtifactRef
from memory_manager.word_sum import add_words, word_sum
from mooring.errors import ArtifactError, InsufficientMemoryError
from mooring.units import format_bytes

__all__ = ["HostCopyFile", "open_artifact"]

_READ_BYTES = 1 << 20  # bytes of one read: a step that wants the core meanwhile waits for it


class HostCopyFile:
    """Memory that is being filled from an artifact's file.

    Args:
        memory: memory for at least ``ref.num_bytes``; owned from here on, until ``seal`` gives it back.
        wait_for_cores: called before each piece that is read or made physical, by the thread that does it.

    Raises:
        InsufficientMemoryError: memory that should be physical is not, and the system has no more.
    """

    def __init__(
        self, ref: ArtifactRef, memory: CopyMemory, wait_for_cores: Callable[[], None] = lambda: None
    ) -> None:
        self._ref = ref
        self._memory = memory
        self._wait_for_cores = wait_for_cores
        try:
            host_pages.populate(memory.address, memory.physical_bytes, writable=True)
        except BaseException:  # whatever stopped it, the memory goes
            self.abandon()
            raise

    def fill(self, source: int, start: int, stop: int) -> int:
        """Reads the bytes ``[start, stop)`` of ``source`` into place; ``start`` is at a page. Several threads
        may fill different bytes at once.

        Returns:
            The checksum of the bytes (``memory_manager.word_sum``); 0 if nobody else can write to them: then
            none is needed.

        Raises:
            ArtifactError: the file is unreadable or ends before.
            InsufficientMemoryError: the host has no memory for it.
        """
        target = memoryview((ctypes.c_char * (stop - start)).from_address(self._memory.address + start)).cast(
            "B"
        )
        done = max(0, min(self._memory.physical_bytes, stop) - start)
        total = self._read(source, target[:done], start)
        while done < len(target):
            # Pages are made physical before the system writes there, so that a shortage is an error and not a
            # SIGBUS. They are made one at a time, so that each is still in the processor's cache when it is
            # filled.
            length = min(PAGE_BYTES, len(target) - done)
            self._make_physical(start + done, length)
            total = add_words(total, self._read(source, target[done : done + length], start + done))
            done += length
        return total

    def seal(self) -> CopyMemory:
        """Ends the filling; returns the memory, which the caller owns now."""
        self._memory.physical_bytes = self._ref.num_bytes
        self._memory.seal()
        return self._memory

    def abandon(self) -> None:
        """Gives up a copy that failed. Call it when no thread fills it any more."""
        self._memory.close()

    def _make_physical(self, offset: int, num_bytes: int) -> None:
        self._wait_for_cores()
        try:
            host_pages.make_physical(self._memory.address + offset, num_bytes)
        except InsufficientMemoryError as error:
            raise InsufficientMemoryError(
                f"the host has no memory for {self._ref.key} of {format_bytes(self._ref.num_bytes)}: "
                "lower the host cache's budget"
            ) from error

    def _read(self, source: int, target: memoryview, offset: int) -> int:
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
        # Summed here, while the bytes are in the processor's cache or near it.
        return word_sum(target) if self._memory.to_be_pinned else 0


def open_artifact(ref: ArtifactRef) -> int:
    """Opens the packed file after checking its size, or the folder.

    Raises:
        ArtifactError: the file is missing, unreadable or of another size.
    """
    try:
        source = os.open(ref.weights_path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(ref.weights_path, error) from error
    if ref.is_folder:
        return source
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
