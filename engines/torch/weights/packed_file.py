"""A packed file whose weights come to the device without a copy in host memory: for models that the host tier has no
room for."""

from __future__ import annotations

import ctypes
import os

import torch
from torch import Tensor

from engines.torch.weights.core_turns import CoreTurns
from engines.torch.weights.host_copy_view import in_pieces
from memory_manager.word_sum import WORD_BYTES, add_words, word_sum
from mooring.errors import ArtifactError
from mooring.units import MIB

__all__ = ["PackedFile"]

_PIECE_BYTES = (
    2 * MIB
)  # read at once by a thread, in about a millisecond, before it asks whether its turn is over
_NUM_BUFFERS = 2  # one is filled while a GPU fetches the other


class PackedFile:
    """The first ``num_bytes`` of a packed file, each read once.

    What has been read leaves the system's page cache too, so that a model of any size takes a few pieces of host
    memory on its way.

    Args:
        fd: its descriptor.

    Raises:
        ArtifactError: the file is shorter; ``read_to_host`` and ``read_to_cuda`` raise it if it becomes unreadable.
    """

    def __init__(self, fd: int, num_bytes: int) -> None:
        self._fd = fd
        self._num_bytes = num_bytes
        found_bytes = os.fstat(fd).st_size
        if found_bytes < num_bytes:
            raise ArtifactError(f"the packed file ends at byte {found_bytes}, before its weights do")

    def read_to_host(self, target: Tensor, num_threads: int, turns: CoreTurns, share: float) -> None:
        """Reads everything to the start of ``target``, uint8, in host memory. ``share``: see
        ``HostCopyView.copy_to_host``."""
        memory = memoryview((ctypes.c_char * self._num_bytes).from_address(target.data_ptr())).cast("B")

        def read(start: int, stop: int) -> None:
            self._read(memory[start:stop], start)

        in_pieces(self._num_bytes, _PIECE_BYTES, read, num_threads, turns, share)

    def read_to_cuda(self, target: Tensor, chunk_bytes: int) -> int:
        """Reads everything to the start of ``target``, uint8, on a stream of its own, through two pinned buffers of
        ``chunk_bytes``; returns the checksum (``memory_manager.word_sum``) of what was read."""
        chunk_bytes = max(WORD_BYTES, chunk_bytes - chunk_bytes % WORD_BYTES)
        buffers = [torch.empty(chunk_bytes, dtype=torch.uint8, pin_memory=True) for _ in range(_NUM_BUFFERS)]
        fetched = [torch.cuda.Event() for _ in buffers]  # type: ignore[no-untyped-call]
        stream = torch.cuda.Stream(target.device)  # type: ignore[no-untyped-call]
        checksum = 0
        try:
            for number, start in enumerate(range(0, self._num_bytes, chunk_bytes)):
                stop = min(start + chunk_bytes, self._num_bytes)
                turn = number % _NUM_BUFFERS
                piece = buffers[turn][: stop - start]
                fetched[turn].synchronize()  # at once, if nothing was recorded
                memory = piece.numpy().data
                self._read(memory, start)
                checksum = add_words(checksum, word_sum(memory))
                with torch.cuda.stream(stream):
                    target[start:stop].copy_(piece, non_blocking=True)
                fetched[turn].record(stream)
        finally:
            stream.synchronize()  # even if a read failed: the pages under the others are given back next
        return checksum

    def _read(self, target: memoryview, offset: int) -> None:
        done = 0
        while done < len(target):
            try:
                num_read = os.preadv(self._fd, [target[done:]], offset + done)
            except OSError as error:
                raise ArtifactError(f"the packed file cannot be read: {error.strerror}") from error
            if num_read == 0:
                raise ArtifactError(f"the packed file shrank to {offset + done} bytes while it was read")
            done += num_read
        os.posix_fadvise(self._fd, offset, len(target), os.POSIX_FADV_DONTNEED)
