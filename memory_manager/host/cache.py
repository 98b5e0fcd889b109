"""The host cache: packed weights as sealed memfds that outlive the workers.

The cache belongs to the server process. A worker is handed a copy's descriptor over its Unix socket and
copies from it, or maps it, so a worker that dies loses device state only, and a sleeping model wakes without
touching storage.

The budget is a ledger: room for a copy is held from before it is read until the last holder has released it,
since its memory leaves only when the last descriptor closes. Copies without a holder take no room that others
want: the least recently used is evicted first, and the artifact that is read in its place is read into its
memory. Room that is left is used for a spare: memory touched in the background, of the size of the largest
artifact that may be read next.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter

from memory_manager.cores import stand_back
from memory_manager.host.copy_file import HostCopyFile, open_artifact
from memory_manager.host.copy_memory import CopyMemory, CopyStatus
from memory_manager.host.spare import HostSpare
from memory_manager.kv_spec import PAGE_BYTES
from memory_manager.memfd import is_ours_alone, new_memfd, open_to_read
from memory_manager.ports import ArtifactRef
from memory_manager.word_sum import add_words
from mooring.errors import InsufficientMemoryError, ShuttingDownError
from mooring.units import format_bytes

__all__ = ["HostCache", "HostCopy"]

_CHUNK_BYTES = 16 * PAGE_BYTES  # bytes that one read job fetches; several jobs are under way at once


@dataclass(slots=True, eq=False)
class HostCopy:
    """Room for packed weights in host memory, and once they are read, the weights; kept there until released.

    Attributes:
        fd: a sealed memfd, open to be read only. It belongs to the cache: send it, never close it. -1 until the
            weights are read.
        seconds: seconds that reading it from storage took.
        checksum: checksum of its bytes (``memory_manager.word_sum``); None if nobody can write to them.
    """

    key: str
    num_bytes: int
    _find_or_read: Callable[[], Awaitable[_Stored]] = field(repr=False)
    _give_back: Callable[[], None] = field(repr=False)
    fd: int = -1
    checksum: int | None = None
    seconds: float = 0.0
    _released: bool = False

    async def read(self) -> None:
        """Reads the weights from storage if the cache does not have them yet; holders of one key share one read.

        A caller that is cancelled leaves the read to the other holders, and the copy to the next one.

        Raises:
            ArtifactError: the packed file is missing, unreadable or of the wrong size.
            InsufficientMemoryError: the host has less memory than the budget.
            ShuttingDownError: the cache is closed.
        """
        stored = await self._find_or_read()
        self.fd, self.checksum, self.seconds = stored.fd, stored.checksum, stored.seconds

    def release(self) -> None:
        """Lets the cache evict the copy, as far as this holder is concerned; idempotent. Every process that
        was sent the descriptor has closed it by now."""
        if not self._released:
            self._released = True
            self._give_back()


@dataclass(frozen=True, slots=True)
class _Stored:
    """A complete copy, as the cache keeps it.

    Attributes:
        fd: the descriptor that others get.
        memory: the memory, which only the cache has.
        checksum: as in ``HostCopy``.
    """

    fd: int
    memory: CopyMemory
    checksum: int | None
    num_bytes: int
    seconds: float


class HostCache:
    """Copies of packed artifacts within a budget of bytes.

    Threads: belongs to one event loop; the reading itself runs in threads of its own.

    Args:
        budget_bytes: most host memory for copies, including those being read and the spare.
        num_readers: chunks read at once, over all artifacts. By default two, and on larger machines up to
            eight: more than there are idle cores would only disturb the busy ones.
        wait_for_cores: called before each piece of work that the cache's own threads do.
        to_be_pinned: whether copies go to GPUs too, so that they cannot be sealed against writing (see
            ``CopyMemory``).
    """

    def __init__(
        self,
        budget_bytes: int,
        num_readers: int | None = None,
        wait_for_cores: Callable[[], None] = lambda: None,
        *,
        to_be_pinned: bool = False,
    ) -> None:
        self._to_be_pinned = to_be_pinned
        self._budget_bytes = budget_bytes
        self._used_bytes = 0
        self._expected: dict[str, int] = {}
        self._spare = HostSpare(wait_for_cores)
        self._wait_for_cores = wait_for_cores
        self._may_spare = True
        self._copies: OrderedDict[str, _Stored] = OrderedDict()  # the least recently used first
        self._evicted: dict[str, CopyMemory] = {}  # by key of the artifact that will be read into it
        self._holders: dict[str, int] = {}  # number of holders of a copy, or of room for one; a read is one
        self._held_bytes = 0
        self._reading: dict[str, asyncio.Task[_Stored]] = {}
        self._reading_bytes: dict[str, int] = {}  # of the same keys
        if num_readers is None:
            num_readers = min(max(2, (os.cpu_count() or 1) // 2), 8)
        self._readers = ThreadPoolExecutor(num_readers, "host-cache", initializer=stand_back)
        self._closed = False

    @property
    def used_bytes(self) -> int:
        """Bytes of copies, including those being read and without the spare."""
        return self._used_bytes

    @property
    def spare_bytes(self) -> int:
        """Bytes of memory that is made ready for the next read, or is being made so."""
        return self._spare.num_bytes

    def contains(self, key: str) -> bool:
        """Whether the cache has a complete copy."""
        return key in self._copies

    @property
    def budget_bytes(self) -> int:
        """Most host memory for copies."""
        return self._budget_bytes

    @property
    def free_bytes(self) -> int:
        """Bytes of the budget that can be held: all but those of copies that are held or being read."""
        return self._budget_bytes - self._held_bytes

    def copies(self) -> dict[str, CopyStatus]:
        """All copies, those being read included, by key."""
        found = {key: CopyStatus(num_bytes, "reading") for key, num_bytes in self._reading_bytes.items()}
        for key, copy in self._copies.items():
            found[key] = CopyStatus(copy.num_bytes, "held" if key in self._holders else "kept")
        return found

    def holds(self, key: str) -> bool:
        """Whether room for the artifact is held, so that another holder needs no more."""
        return key in self._holders

    def expect(self, ref: ArtifactRef) -> None:
        """Notes that the artifact may be asked for: room that nothing else needs is made ready for its copy."""
        if ref.is_folder:
            return
        self._expected[ref.key] = ref.num_bytes
        self._make_ready()

    def forget(self, key: str) -> None:
        """Notes that the artifact will not be asked for any more."""
        self._expected.pop(key, None)
        self._make_ready()

    def allow_spare(self, allowed: bool) -> int:
        """Allows a spare or not, as memory outside the cache is plentiful or short; returns the bytes that
        were given back."""
        self._may_spare = allowed
        before_bytes = self._spare.num_bytes
        self._make_ready()
        return max(0, before_bytes - self._spare.num_bytes)

    def give_up(self, num_bytes: int) -> int:
        """Gives host memory back to the system: the spare first, then copies without a holder, the longest
        unused first. Returns the bytes given back, which are fewer than ``num_bytes`` if there is no more of
        these."""
        given_bytes = self._spare.give_back()
        for key in [key for key in self._copies if key not in self._holders]:
            if given_bytes >= num_bytes:
                break
            given_bytes += self._copies[key].num_bytes
            self._drop(key)
        return given_bytes

    def discard(self, key: str) -> None:
        """Drops a copy whose bytes have changed, so that it is read again; a copy that has holders stays
        until the last of them calls this too."""
        if key in self._copies and key not in self._holders:
            self._drop(key)
            self._make_ready()

    async def wait_ready(self) -> None:
        """Waits until the spare is physical; for measurements."""
        await asyncio.to_thread(self._spare.wait)

    def hold(self, ref: ArtifactRef) -> HostCopy:
        """Holds room for a copy of ``ref``, which the caller then reads. The caller releases it when nobody needs
        the copy any more.

        Raises:
            InsufficientMemoryError: the artifact is larger than the budget, or everything else is in use.
        """
        if ref.key not in self._holders and ref.num_bytes > self.free_bytes:
            size, budget = format_bytes(ref.num_bytes), format_bytes(self._budget_bytes)
            in_use = "" if ref.num_bytes > self._budget_bytes else ", which are in use"
            raise InsufficientMemoryError(
                f"{ref.key} needs {size} of host memory and the host cache has {budget}{in_use}: raise its budget"
            )
        self._hold(ref)
        return HostCopy(ref.key, ref.num_bytes, partial(self._find_or_read, ref), partial(self._let_go, ref))

    async def get(self, ref: ArtifactRef) -> HostCopy:
        """Holds a copy and reads it; raises what ``hold`` and ``HostCopy.read`` raise, and then holds nothing."""
        copy = self.hold(ref)
        try:
            await copy.read()
        except BaseException:  # a cancelled caller too holds nothing
            copy.release()
            raise
        return copy

    def open_file(self, ref: ArtifactRef) -> int:
        """Opens the packed file of an artifact, which is to be read without a copy; the caller closes it.

        Raises:
            ArtifactError: the file is missing, unreadable or of the wrong size.
        """
        return open_artifact(ref)

    async def close(self) -> None:
        """Waits for reads under way, then closes every descriptor; idempotent. Memory that a worker
        still maps leaves with the worker."""
        self._closed = True
        await asyncio.gather(*self._reading.values(), return_exceptions=True)
        for key in list(self._copies):
            self._drop(key)
        self._spare.close()
        self._readers.shutdown()

    def _hold(self, ref: ArtifactRef) -> None:
        num_holders = self._holders.get(ref.key, 0)
        self._holders[ref.key] = num_holders + 1
        if not num_holders:
            self._held_bytes += ref.num_bytes

    def _let_go(self, ref: ArtifactRef) -> None:
        self._holders[ref.key] -= 1
        if not self._holders[ref.key]:
            del self._holders[ref.key]
            self._held_bytes -= ref.num_bytes

    async def _find_or_read(self, ref: ArtifactRef) -> _Stored:
        if self._closed:
            raise ShuttingDownError("the host cache is closed")
        stored = await self._find_or_begin_to_read(ref)
        if self._closed:
            raise ShuttingDownError("the host cache was closed meanwhile")
        return stored

    async def _find_or_begin_to_read(self, ref: ArtifactRef) -> _Stored:
        copy = self._copies.get(ref.key)
        if copy is not None:
            self._copies.move_to_end(ref.key)
            return copy
        task = self._reading.get(ref.key)
        if task is None:
            memory = self._make_room(ref)
            if memory is not None:
                self._evicted[ref.key] = memory
            self._used_bytes += ref.num_bytes
            self._hold(ref)
            task = asyncio.create_task(self._read(ref), name=f"read {ref.key}")
            self._reading[ref.key], self._reading_bytes[ref.key] = task, ref.num_bytes
            task.add_done_callback(lambda ended: self._read_ended(ref, ended))
        return await asyncio.shield(task)

    def _make_room(self, ref: ArtifactRef) -> CopyMemory | None:
        """Evicts copies until ``ref``, for which room is held, fits; returns the largest memory that was evicted,
        which the caller owns now."""
        excess_bytes = self._used_bytes + ref.num_bytes - self._budget_bytes
        victims: list[str] = []
        for key, copy in self._copies.items():
            if excess_bytes <= 0:
                break
            if key not in self._holders:
                victims.append(key)
                excess_bytes -= copy.num_bytes
        memories = sorted(map(self._evict, victims), key=attrgetter("physical_bytes"))
        for memory in memories[:-1]:
            memory.close()
        return memories[-1] if memories else None

    def _memory_for(self, ref: ArtifactRef) -> CopyMemory:
        """Memory for an artifact whose bytes are counted already."""
        memory = self._evicted.pop(ref.key, None)
        if memory is not None:
            if is_ours_alone(memory.fd):
                try:
                    memory.refit(ref.num_bytes)
                except BaseException:  # whatever stopped it, the memory goes
                    memory.close()
                    raise
            else:
                memory.close()
                memory = None
        spare = None if memory is not None else self._spare.take(ref.num_bytes)
        if self._used_bytes + self._spare.num_bytes > self._budget_bytes:
            self._spare.give_back()
        if memory is not None:
            return memory
        fd, physical_bytes = spare or (new_memfd(ref.num_bytes), 0)
        return CopyMemory(fd, ref.num_bytes, physical_bytes, to_be_pinned=self._to_be_pinned)

    def _make_ready(self) -> None:
        """Keeps a spare for the largest expected artifact that is not in the cache and fits beside the
        copies."""
        room_bytes = self._budget_bytes - self._used_bytes
        absent = (
            num_bytes
            for key, num_bytes in self._expected.items()
            if key not in self._copies and key not in self._reading and num_bytes <= room_bytes
        )
        wanted_bytes = max(absent, default=0) if self._may_spare and not self._closed else 0
        if wanted_bytes != self._spare.num_bytes:
            self._spare.make(wanted_bytes)

    async def _read(self, ref: ArtifactRef) -> _Stored:
        started_s = time.monotonic()
        file = HostCopyFile(ref, self._memory_for(ref), self._wait_for_cores)
        try:
            source = open_artifact(ref)
            loop = asyncio.get_running_loop()
            starts = range(0, ref.num_bytes, _CHUNK_BYTES)
            spans = [(start, min(start + _CHUNK_BYTES, ref.num_bytes)) for start in starts]
            chunks = asyncio.gather(
                *(loop.run_in_executor(self._readers, file.fill, source, *span) for span in spans),
                return_exceptions=True,
            )
            try:
                results = await asyncio.shield(chunks)
            finally:
                # A thread cannot be cancelled, and must not read from a descriptor or into addresses that
                # have been given up and by then belong to something else.
                await chunks
                os.close(source)
            sums = []
            for result in results:
                if isinstance(result, BaseException):
                    raise result
                sums.append(result)
            memory = file.seal()
            fd = open_to_read(memory.fd)
        except BaseException:  # nothing of a failed or cancelled read stays
            file.abandon()
            raise
        checksum = add_words(*sums) if memory.to_be_pinned else None
        stored = _Stored(fd, memory, checksum, ref.num_bytes, time.monotonic() - started_s)
        self._copies[ref.key] = stored
        return stored

    def _read_ended(self, ref: ArtifactRef, task: asyncio.Task[_Stored]) -> None:
        """Ends the books of a read. Runs before any caller wakes; also for a task cancelled before it
        began."""
        del self._reading[ref.key], self._reading_bytes[ref.key]
        self._let_go(ref)
        if ref.key in self._evicted:
            self._evicted.pop(ref.key).close()
        # Asking for the error marks it as seen even if every caller was cancelled.
        if task.cancelled() or task.exception() is not None:
            self._used_bytes -= ref.num_bytes
        self._make_ready()

    def _drop(self, key: str) -> None:
        self._evict(key).close()

    def _evict(self, key: str) -> CopyMemory:
        """Forgets a copy; returns its memory, which the caller owns now."""
        copy = self._copies.pop(key)
        os.close(copy.fd)
        self._used_bytes -= copy.num_bytes
        return copy.memory
