"""A host copy mapped under addresses of this process, from which weights are copied.

Read through its descriptor, the copy would come at the rate of the system's own copying, which is about half
of what the memory can do.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from engines.torch.weights.core_turns import CoreTurns
from memory_manager import host_pages
from memory_manager.arena.cuda_context import CudaContext
from memory_manager.kv_spec import round_to_pages
from memory_manager.memfd import open_to_write
from mooring.errors import ArtifactError, InsufficientMemoryError, InternalError
from mooring.units import format_bytes

__all__ = ["HostCopyView", "in_pieces", "require_bytes"]

log = logging.getLogger(__name__)

_PIECE_BYTES = 16 << 20  # a thread copies so much, in 1.5 ms, before it asks whether its turn is over


def require_bytes(host_copy_fd: int, num_bytes: int) -> None:
    """Checks that a host copy has ``num_bytes`` bytes: a process that reads mapped pages beyond its end is
    killed.

    Raises:
        ArtifactError: it is shorter.
    """
    found_bytes = os.fstat(host_copy_fd).st_size
    if found_bytes < num_bytes:
        raise ArtifactError(f"the host copy ends at byte {found_bytes}: the packed artifact is longer")


def in_pieces(
    num_bytes: int,
    piece_bytes: int,
    bring: Callable[[int, int], None],
    num_threads: int,
    turns: CoreTurns,
    share: float,
) -> None:
    """Calls ``bring`` with the start and the stop of each piece of ``num_bytes``, on several threads, in turns with
    steps. Raises what it raises.

    Args:
        share: length of each turn as a share of a step's, if steps run.
    """
    starts = deque(range(0, num_bytes, piece_bytes))

    def take(is_over: Callable[[], bool]) -> None:
        with contextlib.suppress(IndexError):  # another thread took the last one
            while True:  # at least one piece, since a turn may be shorter than it takes to begin
                start = starts.popleft()
                bring(start, min(start + piece_bytes, num_bytes))
                if is_over():
                    return

    with ThreadPoolExecutor(num_threads, "weights-copy") as threads:
        while starts:
            with turns.copy(share) as is_over:
                for _ in threads.map(take, [is_over] * num_threads):
                    pass


class HostCopyView:
    """The first ``num_bytes`` of a host copy, to be read only.

    Args:
        host_copy_fd: a memfd that keeps its size.
        to_be_pinned: whether to map it writable, since GPUs that sit on a bus refuse to register memory that
            is not (``CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED`` is 0).

    Raises:
        ArtifactError: the host copy is shorter.
        InsufficientMemoryError: there are no addresses or page tables for it.
    """

    def __init__(self, host_copy_fd: int, num_bytes: int, *, to_be_pinned: bool = False) -> None:
        require_bytes(host_copy_fd, num_bytes)
        self._num_bytes = num_bytes
        self._context: CudaContext | None = None
        self._address = host_pages.reserve(round_to_pages(num_bytes))
        try:
            if to_be_pinned:
                writable_fd = open_to_write(host_copy_fd)
                try:
                    host_pages.map_file(self._address, num_bytes, writable_fd, writable=True)
                finally:
                    os.close(writable_fd)
            else:
                host_pages.map_file(self._address, num_bytes, host_copy_fd, writable=False)
            host_pages.populate(self._address, num_bytes, writable=to_be_pinned)
        except BaseException:  # whatever stopped it, the addresses go back
            self.close()
            raise

    def pin(self, device_index: int) -> None:
        """Keeps the bytes where they are, so that a GPU fetches them itself, at the rate of its link. If the
        driver refuses, the log says so, and the driver copies them piece by piece."""
        context = CudaContext(device_index)
        try:
            context.call("cuMemHostRegister", self._address, self._num_bytes, 0)
        except (InsufficientMemoryError, InternalError) as error:
            context.close()
            size = format_bytes(self._num_bytes)
            log.warning("a host copy of %s is not pinned, so wakes are slower: %s", size, error.message)
            return
        self._context = context

    def copy_to_host(self, target: Tensor, num_threads: int, turns: CoreTurns, share: float) -> None:
        """Copies everything to the start of ``target``, uint8, in host memory.

        Each thread copies large pieces: only then does the C library write past the caches, without which
        every line of the target is fetched before it is overwritten.

        Args:
            share: length of each turn of the copy as a share of a step's, if steps run.
        """
        address = target.data_ptr()

        def copy(start: int, stop: int) -> None:
            ctypes.memmove(address + start, self._address + start, stop - start)

        in_pieces(self._num_bytes, _PIECE_BYTES, copy, num_threads, turns, share)

    def copy_to_cuda(self, target: Tensor, chunk_bytes: int) -> None:
        """Copies everything to the start of ``target``, uint8, on a stream of its own, in chunks, so that a
        step's own small copies get in between."""
        source = torch.frombuffer(
            (ctypes.c_uint8 * self._num_bytes).from_address(self._address), dtype=torch.uint8
        )
        stream = torch.cuda.Stream(target.device)  # type: ignore[no-untyped-call]
        try:
            with torch.cuda.stream(stream):
                for start in range(0, self._num_bytes, chunk_bytes):
                    stop = min(start + chunk_bytes, self._num_bytes)
                    target[start:stop].copy_(source[start:stop], non_blocking=True)
        finally:
            stream.synchronize()  # even if a chunk failed: the pages under the others are given back next

    def close(self) -> None:
        """Gives the addresses back. Call it when no copy runs any more."""
        if self._context is not None:
            self._context.call("cuMemHostUnregister", self._address)
            self._context.close()
            self._context = None
        host_pages.unreserve(self._address, round_to_pages(self._num_bytes))
