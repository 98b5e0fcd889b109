"""A replica's weights in the arena: brought from the host copy and released, always at one address.

They are brought by a copy into pages of the arena. Where the device is the CPU they may instead be the host
copy's own pages, put under the same addresses: no copy, and no second copy in memory.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from engines.artifact import Manifest, TensorEntry
from memory_manager.arena import Arena
from memory_manager.kv_spec import round_to_pages
from mooring.errors import ArtifactError, InsufficientMemoryError
from mooring.units import format_bytes

__all__ = ["WeightsRegion"]


class WeightsRegion:
    """One address range for one packed artifact.

    A host copy that is copied is read through its descriptor and not mapped, so its pages do not count twice
    in the worker's resident memory. Tensors made over the range stay valid over release and restore; while it
    is released nobody may touch them, and never may anybody write to them.

    Args:
        num_bytes: size of the packed weights.
        copy_chunk_bytes, num_copy_threads: see ``TorchEngineConfig``.
        may_borrow: a sealed host copy in the memory of this very device is mapped and not copied.

    Raises:
        InsufficientMemoryError: there are no such addresses.
    """

    def __init__(
        self,
        arena: Arena,
        num_bytes: int,
        *,
        copy_chunk_bytes: int,
        num_copy_threads: int,
        may_borrow: bool = False,
    ) -> None:
        self._arena = arena
        self._num_bytes = num_bytes
        self._chunk_bytes = copy_chunk_bytes
        self._num_threads = num_copy_threads
        self._range = arena.reserve(round_to_pages(num_bytes))
        self._memory = arena.tensor(self._range)
        self._may_borrow = may_borrow and not self._memory.is_cuda
        self._committed = False

    @property
    def committed_bytes(self) -> int:
        """Device bytes held now: whole pages, or none."""
        return self._range.num_bytes if self._committed else 0

    def restore(self, host_copy_fd: int, lease_bytes: int) -> None:
        """Brings the weights; all or nothing.

        Raises:
            InsufficientMemoryError: the lease is smaller than the pages, or the arena has no more.
            ArtifactError: the host copy is shorter than the manifest says.
        """
        if lease_bytes < self._range.num_bytes:
            raise InsufficientMemoryError(
                f"the weights need {format_bytes(self._range.num_bytes)} and "
                f"{format_bytes(lease_bytes)} were leased to them"
            )
        if self._may_borrow and _cannot_change(host_copy_fd):
            self._borrow(host_copy_fd)
            return
        self._arena.commit(self._range, 0, self._num_pages)
        self._committed = True
        try:
            if self._memory.is_cuda:
                self._copy_to_cuda(host_copy_fd)
            else:
                self._copy_to_host(host_copy_fd)
        except BaseException:  # whatever stopped it, the pages go back
            self.release()
            raise

    def release(self) -> int:
        """Gives the pages back and keeps the addresses; returns the bytes given back."""
        released_bytes = self.committed_bytes
        if self._committed:
            self._committed = False
            self._arena.release(self._range, 0, self._num_pages)
        return released_bytes

    def close(self) -> None:
        """Gives pages and addresses back. The tensors are no memory any more."""
        self._committed = False
        self._arena.free_range(self._range)

    def tensors(self, manifest: Manifest) -> Mapping[str, Tensor]:
        """The manifest's tensors as views of the range.

        Raises:
            ArtifactError: an entry contradicts itself or lies outside the artifact.
        """
        return {name: self._view(name, entry) for name, entry in manifest.tensors.items()}

    @property
    def _num_pages(self) -> int:
        return self._range.num_bytes // self._arena.page_bytes

    def _view(self, name: str, entry: TensorEntry) -> Tensor:
        dtype = getattr(torch, entry.dtype, None)
        if not isinstance(dtype, torch.dtype):
            raise ArtifactError(f"tensor {name} has the unknown dtype {entry.dtype!r}")
        num_elements = 1
        for extent in entry.shape:
            num_elements *= extent
        inside = 0 <= entry.offset <= entry.offset + entry.num_bytes <= self._num_bytes
        if not inside or num_elements * dtype.itemsize != entry.num_bytes or entry.offset % dtype.itemsize:
            raise ArtifactError(f"the manifest's entry of tensor {name} is wrong: {entry}")
        return self._memory[entry.offset : entry.offset + entry.num_bytes].view(dtype).view(entry.shape)

    def _chunks(self) -> list[tuple[int, int]]:
        starts = range(0, self._num_bytes, self._chunk_bytes)
        return [(start, min(start + self._chunk_bytes, self._num_bytes)) for start in starts]

    def _borrow(self, host_copy_fd: int) -> None:
        found_bytes = os.fstat(host_copy_fd).st_size
        if found_bytes < self._num_bytes:
            raise ArtifactError(f"the host copy ends at byte {found_bytes}: the packed artifact is longer")
        self._arena.lend(self._range, host_copy_fd, self._num_bytes)
        self._committed = True

    def _copy_to_host(self, host_copy_fd: int) -> None:
        memory = self._memory.numpy().data

        def copy(chunk: tuple[int, int]) -> None:
            _read_exactly(host_copy_fd, memory[chunk[0] : chunk[1]], chunk[0])

        with ThreadPoolExecutor(self._num_threads, thread_name_prefix="weights-copy") as threads:
            for _ in threads.map(copy, self._chunks()):
                pass

    def _copy_to_cuda(self, host_copy_fd: int) -> None:
        """Through two pinned buffers, one filled while the other is on its way, on a stream of its own."""
        device = self._memory.device
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        buffers = [torch.empty(self._chunk_bytes, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        copied = [torch.cuda.Event() for _ in buffers]  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            for i, (start, end) in enumerate(self._chunks()):
                buffer, done = buffers[i % 2][: end - start], copied[i % 2]
                done.synchronize()  # returns at once on an event that was never recorded
                _read_exactly(host_copy_fd, buffer.numpy().data, start)
                self._memory[start:end].copy_(buffer, non_blocking=True)
                done.record(stream)
        stream.synchronize()


def _cannot_change(fd: int) -> bool:
    """Whether the kernel keeps a memfd as it is: memory that shrank under a step would kill the worker."""
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS) & seals == seals
    except OSError:
        return False  # not a memfd


def _read_exactly(fd: int, target: memoryview, offset: int) -> None:
    done = 0
    while done < len(target):
        num_read = os.preadv(fd, [target[done:]], offset + done)
        if num_read == 0:
            raise ArtifactError(f"the host copy ends at byte {offset + done}: the packed artifact is longer")
        done += num_read
