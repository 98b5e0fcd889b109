"""A replica's weights in the arena: brought from the host copy and released, always at one address.

They come by a copy into pages of the arena. If the device is the CPU, the host copy's own pages may be put
under the same addresses instead: no copy, and no second set of pages in memory. If there is no host copy, they come
from the packed file into pages of the arena.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from engines.artifact import Manifest, TensorEntry
from engines.torch.weights.core_turns import CoreTurns
from engines.torch.weights.host_copy_view import HostCopyView, require_bytes
from engines.torch.weights.packed_file import PackedFile
from memory_manager.arena.protocol import Arena
from memory_manager.kv_spec import round_to_pages
from memory_manager.memfd import is_sealed
from memory_manager.word_sum import WORD_BYTES, add_words
from mooring.errors import ArtifactError, HostCopyAlteredError, InsufficientMemoryError
from mooring.units import format_bytes

__all__ = ["WeightsRegion"]


class WeightsRegion:
    """One address range for one packed artifact.

    Tensors made over the range stay valid over release and restore. While the range is released, nobody may
    touch them; nobody may ever write to them. For a GPU the host copy is pinned at the first restore and
    stays so.

    Args:
        num_bytes: size of the packed weights.
        copy_chunk_bytes: see ``TorchEngineConfig``.
        num_copy_threads: see ``TorchEngineConfig``.
        core_turns: turns at the cores, for a device that is the CPU.
        may_borrow: whether a sealed host copy is mapped instead of copied, if it is in the memory of this
            very device.
        checksum: checksum (``memory_manager.word_sum``) that the bytes must have each time that they come;
            None if nobody can write to the host copy.

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
        core_turns: CoreTurns,
        may_borrow: bool = False,
        checksum: int | None = None,
    ) -> None:
        self._arena = arena
        self._num_bytes = num_bytes
        self._chunk_bytes = copy_chunk_bytes
        self._num_threads = num_copy_threads
        self._core_turns = core_turns
        self._range = arena.reserve(round_to_pages(num_bytes))
        self._memory = arena.tensor(self._range)
        self._may_borrow = may_borrow and not self._memory.is_cuda
        self._checksum = checksum
        self._pinned: HostCopyView | None = None
        self._committed = False

    @property
    def committed_bytes(self) -> int:
        """Device bytes that the region holds now: whole pages, or none."""
        return self._range.num_bytes if self._committed else 0

    def restore(
        self, weights_fd: int, lease_bytes: int, *, core_share: float, from_file: bool = False
    ) -> None:
        """Brings the weights; all or nothing.

        Args:
            weights_fd: descriptor of the host copy, or of the packed file.
            core_share: length of each turn that the copy has at a CPU device's cores, as a share of a step's.
            from_file: whether it is the packed file.

        Raises:
            InsufficientMemoryError: the lease is smaller than the pages, or the arena has no more memory.
            ArtifactError: the host copy or the file is shorter than the manifest says, or the file is unreadable.
            HostCopyAlteredError: the host copy has changed since it was made, or the file's bytes on their way.
        """
        if lease_bytes < self._range.num_bytes:
            raise InsufficientMemoryError(
                f"the weights need {format_bytes(self._range.num_bytes)} and "
                f"{format_bytes(lease_bytes)} were leased to them"
            )
        try:
            checksum = self._checksum
            if from_file:
                checksum = self._read_file(weights_fd, core_share)
            elif self._may_borrow and is_sealed(weights_fd):
                self._borrow(weights_fd)
            else:
                self._copy(weights_fd, core_share)
            self._check_sum(checksum)
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
        """Gives pages and addresses back. The tensors have no memory behind them any more."""
        self._committed = False
        self._arena.free_range(self._range)
        self.unpin()

    def unpin(self) -> None:
        """Lets go of the host copy, if it is pinned."""
        if self._pinned is not None:
            self._pinned.close()
            self._pinned = None

    def tensors(self, manifest: Manifest) -> Mapping[str, Tensor]:
        """The manifest's tensors as views of the range.

        Raises:
            ArtifactError: a tensor's entry contradicts itself or lies outside the artifact.
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

    def _commit(self) -> None:
        self._arena.commit(self._range, 0, self._num_pages)
        self._committed = True

    def _read_file(self, file_fd: int, core_share: float) -> int | None:
        """Reads the packed file; returns the checksum of what was read, if that was not read straight into place."""
        file = PackedFile(file_fd, self._num_bytes)
        self._commit()
        if self._memory.is_cuda:
            return file.read_to_cuda(self._memory, self._chunk_bytes)
        file.read_to_host(self._memory, self._num_threads, self._core_turns, core_share)
        return None

    def _copy(self, host_copy_fd: int, core_share: float) -> None:
        self._commit()
        if self._memory.is_cuda:
            self._copy_to_cuda(host_copy_fd)
        else:
            self._copy_to_host(host_copy_fd, core_share)

    def _check_sum(self, checksum: int | None) -> None:
        if checksum is None:
            return
        whole_bytes = self._num_bytes - self._num_bytes % WORD_BYTES
        words = int(self._memory[:whole_bytes].view(torch.int64).sum())  # wraps around
        rest = bytes(self._memory[whole_bytes : self._num_bytes].tolist())
        if add_words(words, int.from_bytes(rest, "little")) != checksum:
            raise HostCopyAlteredError("something wrote to the weights' copy in host memory")

    def _borrow(self, host_copy_fd: int) -> None:
        require_bytes(host_copy_fd, self._num_bytes)
        self._arena.lend(self._range, host_copy_fd, self._num_bytes)
        self._committed = True

    def _copy_to_host(self, host_copy_fd: int, core_share: float) -> None:
        # Mapped for the time of the copy only: otherwise the pages would count twice in the worker's resident
        # memory.
        view = HostCopyView(host_copy_fd, self._num_bytes)
        try:
            view.copy_to_host(self._memory, self._num_threads, self._core_turns, core_share)
        finally:
            view.close()

    def _copy_to_cuda(self, host_copy_fd: int) -> None:
        if self._pinned is None:
            self._pinned = HostCopyView(host_copy_fd, self._num_bytes, to_be_pinned=True)
            self._pinned.pin(self._memory.device.index)
        self._pinned.copy_to_cuda(self._memory, self._chunk_bytes)
