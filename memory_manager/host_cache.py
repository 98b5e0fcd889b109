"""The host cache: packed weights as sealed memfds that outlive the workers.

It belongs to the server process. A worker is handed the descriptor over its Unix socket and copies from
it, so a worker that dies loses device state only, and a sleeping model wakes without touching storage.

Its memory leaves only when the last descriptor closes, so a copy stays while anybody to whom it was given
has not released it; of the others the least recently used is evicted first.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from memory_manager.ports import ArtifactRef
from mooring.errors import ArtifactError, InsufficientMemoryError, ShuttingDownError
from mooring.units import MIB, format_bytes

__all__ = ["HostCache", "HostCopy"]

_CHUNK_BYTES = 32 * MIB  # what one read job fetches; several are under way at once
_BUFFER_BYTES = MIB  # stays in a core's own cache between the read and the write
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


@dataclass(slots=True, eq=False)
class HostCopy:
    """Packed weights in host memory, kept there until released.

    Attributes:
        fd: a sealed memfd, the cache's own: send it, never close it. Readers use ``pread`` or a private
            mapping.
        seconds: what reading it from storage took.
    """

    key: str
    fd: int
    num_bytes: int
    seconds: float
    _give_back: Callable[[], None] = field(repr=False)
    _released: bool = False

    def release(self) -> None:
        """Lets the cache evict it, as far as this holder is concerned; idempotent. Every process that
        was sent the descriptor has closed it by now."""
        if not self._released:
            self._released = True
            self._give_back()


@dataclass(frozen=True, slots=True)
class _Stored:
    """A complete copy, as the cache keeps it."""

    fd: int
    num_bytes: int
    seconds: float


class HostCache:
    """Copies of packed artifacts within a budget of bytes.

    Threads: belongs to one event loop; the reading itself runs in threads of its own.

    Args:
        budget_bytes: most host memory for copies, those being read included.
        num_readers: chunks read at once, over all artifacts.
    """

    def __init__(self, budget_bytes: int, num_readers: int = 4) -> None:
        self._budget_bytes = budget_bytes
        self._used_bytes = 0
        self._copies: OrderedDict[str, _Stored] = OrderedDict()  # the least recently used first
        self._holders: dict[str, int] = {}  # of a copy, and of one that is being read
        self._reading: dict[str, asyncio.Task[_Stored]] = {}
        self._readers = ThreadPoolExecutor(num_readers, thread_name_prefix="host-cache")
        self._closed = False

    @property
    def used_bytes(self) -> int:
        """Of copies, those being read included."""
        return self._used_bytes

    def contains(self, key: str) -> bool:
        """Whether a complete copy is here."""
        return key in self._copies

    async def get(self, ref: ArtifactRef) -> HostCopy:
        """The copy of ``ref``, read from storage where it is not here yet; callers of one key at the
        same time share one read. The caller releases it when nobody needs the descriptor any more.

        A caller that is cancelled leaves the read to the others, and the copy to the next.

        Raises:
            ArtifactError: the packed file is missing, unreadable or not of the size it should be.
            InsufficientMemoryError: larger than the budget, or everything else is in use.
            ShuttingDownError: the cache is closed.
        """
        if self._closed:
            raise ShuttingDownError("the host cache is closed")
        self._hold(ref.key)  # before the first await, so that nothing evicts it in between
        try:
            stored = await self._find_or_read(ref)
            if self._closed:
                raise ShuttingDownError("the host cache was closed meanwhile")
        except BaseException:  # a cancelled caller too holds nothing
            self._let_go(ref.key)
            raise
        return HostCopy(ref.key, stored.fd, stored.num_bytes, stored.seconds, lambda: self._let_go(ref.key))

    async def close(self) -> None:
        """Waits for reads under way, then closes every descriptor; idempotent. Memory that a worker
        still maps leaves with the worker."""
        self._closed = True
        await asyncio.gather(*self._reading.values(), return_exceptions=True)
        for key in list(self._copies):
            self._drop(key)
        self._readers.shutdown()

    def _hold(self, key: str) -> None:
        self._holders[key] = self._holders.get(key, 0) + 1

    def _let_go(self, key: str) -> None:
        self._holders[key] -= 1
        if not self._holders[key]:
            del self._holders[key]

    async def _find_or_read(self, ref: ArtifactRef) -> _Stored:
        copy = self._copies.get(ref.key)
        if copy is not None:
            self._copies.move_to_end(ref.key)
            return copy
        task = self._reading.get(ref.key)
        if task is None:
            self._make_room(ref)
            self._used_bytes += ref.num_bytes
            task = asyncio.create_task(self._read(ref), name=f"read {ref.key}")
            self._reading[ref.key] = task
            task.add_done_callback(lambda ended: self._read_ended(ref, ended))
        return await asyncio.shield(task)

    def _make_room(self, ref: ArtifactRef) -> None:
        """Evicts until ``ref`` fits, or nothing at all where it cannot."""
        size = format_bytes(ref.num_bytes)
        budget = format_bytes(self._budget_bytes)
        if ref.num_bytes > self._budget_bytes:
            raise InsufficientMemoryError(
                f"{ref.key} needs {size} of host memory and the host cache has {budget}: raise its budget"
            )
        excess_bytes = self._used_bytes + ref.num_bytes - self._budget_bytes
        victims: list[str] = []
        for key, copy in self._copies.items():
            if excess_bytes <= 0:
                break
            if key not in self._holders:
                victims.append(key)
                excess_bytes -= copy.num_bytes
        if excess_bytes > 0:
            raise InsufficientMemoryError(
                f"{ref.key} needs {size} of host memory and the host cache's {budget} are in use: "
                "raise its budget or unload a model"
            )
        for key in victims:
            self._drop(key)

    async def _read(self, ref: ArtifactRef) -> _Stored:
        started_s = time.monotonic()
        loop = asyncio.get_running_loop()
        fd = os.memfd_create("mooring-host-copy", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            source = _open_artifact(ref)
            offsets = range(0, ref.num_bytes, _CHUNK_BYTES)
            chunks = asyncio.gather(
                *(loop.run_in_executor(self._readers, _copy_chunk, source, fd, at, ref) for at in offsets),
                return_exceptions=True,
            )
            try:
                results = await asyncio.shield(chunks)
            finally:
                # A thread cannot be cancelled, and must not copy between descriptors that are closed
                # and by then somebody else's.
                await chunks
                os.close(source)
            errors = [result for result in results if result is not None]
            if errors:
                raise errors[0]
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:  # nothing of a failed or cancelled read stays
            os.close(fd)
            raise
        stored = _Stored(fd, ref.num_bytes, time.monotonic() - started_s)
        self._copies[ref.key] = stored
        return stored

    def _read_ended(self, ref: ArtifactRef, task: asyncio.Task[_Stored]) -> None:
        """Runs before any caller wakes; also for a task that was cancelled before it began."""
        del self._reading[ref.key]
        # Asking for the error marks it as seen even where every caller was cancelled.
        if task.cancelled() or task.exception() is not None:
            self._used_bytes -= ref.num_bytes

    def _drop(self, key: str) -> None:
        copy = self._copies.pop(key)
        os.close(copy.fd)
        self._used_bytes -= copy.num_bytes


def _open_artifact(ref: ArtifactRef) -> int:
    """Opens the packed file, whole and of the promised size."""
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


def _copy_chunk(source: int, fd: int, start: int, ref: ArtifactRef) -> None:
    """Copies one chunk of the packed file to the same place in the memfd.

    It goes through a small buffer, not a mapping: a shortage of memory is then an error of ``pwrite``
    and not a SIGBUS, and the memfd was never mapped writable, so it can be sealed.
    """
    stop = min(start + _CHUNK_BYTES, ref.num_bytes)
    buffer = memoryview(bytearray(min(_BUFFER_BYTES, stop - start)))
    offset = start
    while offset < stop:
        try:
            num_read = os.preadv(source, [buffer[: stop - offset]], offset)
        except OSError as error:
            raise _unreadable(ref.weights_path, error) from error
        if num_read == 0:
            raise ArtifactError(f"{ref.weights_path} shrank to {offset} bytes while it was read")
        try:
            offset += os.pwrite(fd, buffer[:num_read], offset)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.ENOMEM):
                raise
            raise InsufficientMemoryError(
                f"the host has no memory for {ref.key} of {format_bytes(ref.num_bytes)}: "
                "lower the host cache's budget"
            ) from error


def _unreadable(path: Path, error: OSError) -> ArtifactError:
    return ArtifactError(f"{path} cannot be read: {error.strerror}")
