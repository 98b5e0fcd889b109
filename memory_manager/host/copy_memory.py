"""The memory of host copies: memfds that only this process can write to, and only through a mapping that it
had before the seal."""

from __future__ import annotations

import fcntl
import os
from typing import Literal, NamedTuple

from memory_manager import host_pages
from memory_manager.kv_spec import PAGE_BYTES, round_to_pages
from memory_manager.memfd import F_SEAL_FUTURE_WRITE, closed_on_error

__all__ = ["CopyMemory", "CopyStatus"]


class CopyStatus(NamedTuple):
    """A copy as status pages show it: being read, held by somebody, or kept for who comes."""

    num_bytes: int
    state: Literal["reading", "held", "kept"]


class CopyMemory:
    """A memfd and the one mapping through which it is written.

    Once it is sealed, no process, this one included, can write to it by a descriptor or map it writable. The
    mapping from before can still be written to, so memory that no other process has any more can be filled
    with something else.

    Args:
        fd: a memfd that is mapped nowhere and sealed against nothing; owned from here on, until ``close``.
        num_bytes: bytes that will be written to it.
        physical_bytes: how many of its first bytes are physical already.
        to_be_pinned: whether workers map it writable, since GPUs' drivers want that of memory that they pin;
            then it is sealed against shrinking only.

    Attributes:
        address: address of the mapping.
        to_be_pinned: as given: whether other processes can write to it after it was sealed.

    Raises:
        InsufficientMemoryError: there are no addresses for it.
    """

    def __init__(
        self, fd: int, num_bytes: int, physical_bytes: int = 0, *, to_be_pinned: bool = False
    ) -> None:
        self.fd = fd
        self.physical_bytes = physical_bytes
        self.to_be_pinned = to_be_pinned
        with closed_on_error(fd):
            self._mapped_bytes = round_to_pages(num_bytes)
            self.address = host_pages.reserve(self._mapped_bytes)
            try:
                host_pages.map_file(self.address, self._mapped_bytes, fd, writable=True)
            except BaseException:  # whatever stopped it, the addresses go back
                host_pages.unreserve(self.address, self._mapped_bytes)
                raise

    def seal(self) -> None:
        """Makes the written bytes final. They no longer count as this process's resident memory, but still as
        the machine's."""
        host_pages.unpopulate(self.address, self._mapped_bytes)
        # Only one of the two seals: the seal against writing forbids punching holes, so shrinking is then the
        # only way to give a part of the memory back, and nothing shrinks it while another process has it
        # (``refit``).
        seals = fcntl.F_SEAL_SHRINK if self.to_be_pinned else F_SEAL_FUTURE_WRITE
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)

    def refit(self, num_bytes: int) -> None:
        """Gives memory that was sealed room for at least ``num_bytes``, and takes away what lies beyond their
        pages. No other process may have it open or mapped (``memory_manager.memfd.is_ours_alone``).

        Raises:
            InsufficientMemoryError: there are no addresses for it.
        """
        kept_bytes = round_to_pages(num_bytes)
        size_bytes = os.fstat(self.fd).st_size
        if size_bytes > kept_bytes and self.to_be_pinned:  # its seal keeps it from shrinking
            host_pages.punch_hole(self.fd, kept_bytes, size_bytes - kept_bytes)
        elif not num_bytes <= size_bytes <= kept_bytes:
            os.ftruncate(self.fd, kept_bytes)
        if kept_bytes > self._mapped_bytes:
            self._move(kept_bytes)
        whole_bytes = self.physical_bytes - self.physical_bytes % PAGE_BYTES
        self.physical_bytes = min(whole_bytes, num_bytes)

    def close(self) -> None:
        """Gives the mapping and the descriptor back."""
        host_pages.unreserve(self.address, self._mapped_bytes)
        os.close(self.fd)

    def _move(self, num_bytes: int) -> None:
        """Moves the mapping to addresses where there is room for more; a new mapping would not be
        writable."""
        address = host_pages.reserve(num_bytes)
        try:
            host_pages.move_mapping(self.address, self._mapped_bytes, address, num_bytes)
        except BaseException:  # the mapping is where it was
            host_pages.unreserve(address, num_bytes)
            raise
        self.address, self._mapped_bytes = address, num_bytes
