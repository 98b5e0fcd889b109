"""The arena: address ranges reserved once, physical pages committed into them on demand.

Weights and the KV pool live in ranges of one arena per worker, so memory moves between them page by
page while addresses, tensors and captured graphs stay valid. Creating physical memory is the slow part
(first touch on a host, ``cuMemCreate`` on a GPU); mapping it is quick. So released pages wait in a
stock, still physical, and the next commit only maps them; a few are made ahead of need by a thread of their
own. Stock leaves when the arena's limit falls: then memory is short elsewhere.

``Arena`` is the interface. ``paged_arena`` keeps its books; a ``PhysicalMemory`` says what a page is and how
it is mapped, and ``host_arena`` and ``cuda_arena`` have the two kinds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mooring.units import MIB

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "DEFAULT_STOCK_LIMIT_BYTES",
    "AddressRange",
    "Arena",
    "PhysicalMemory",
    "contiguous_runs",
]

DEFAULT_STOCK_LIMIT_BYTES = 64 * MIB


@dataclass(frozen=True, slots=True)
class AddressRange:
    """Reserved virtual addresses ``[address, address + num_bytes)``; whole pages."""

    address: int
    num_bytes: int


class Arena(Protocol):
    """Physical pages under virtual address ranges.

    Threads: every method may be called from any thread, and commits to different ranges run side by
    side (a load must not hold up the step). A range is used by one thread at a time, and ``close`` comes
    last, when no other call is under way.

    Contents: a page that is committed holds whatever its last owner left in it. Nobody may read bytes
    that they did not write.
    """

    @property
    def page_bytes(self) -> int: ...

    @property
    def capacity_bytes(self) -> int:
        """Most physical memory at any time, stock included."""
        ...

    @property
    def limit_bytes(self) -> int:
        """Most physical memory now, stock included; at most the capacity."""
        ...

    @property
    def committed_bytes(self) -> int:
        """Bytes mapped into ranges: the arena's own memory, and memory lent to it."""
        ...

    @property
    def stock_bytes(self) -> int:
        """Bytes of physical memory that is mapped nowhere and waits for the next commit."""
        ...

    def reserve(self, num_bytes: int) -> AddressRange:
        """Takes addresses, rounded up to whole pages, without memory behind them.

        Raises:
            InsufficientMemoryError: the system has no such addresses.
        """
        ...

    def commit(self, addresses: AddressRange, first_page: int, num_pages: int) -> None:
        """Puts memory behind pages ``[first_page, first_page + num_pages)``, none of them committed.
        All or nothing.

        Raises:
            InsufficientMemoryError: the pages exceed the limit, or the system has no more memory.
        """
        ...

    def release(self, addresses: AddressRange, first_page: int, num_pages: int) -> None:
        """Takes the memory away from pages that are all committed. On a GPU the caller has waited for
        every kernel that could touch them."""
        ...

    def lend(self, addresses: AddressRange, descriptor: int, num_bytes: int) -> None:
        """Puts the first ``num_bytes`` of a memfd, read-only, under a range of which nothing is committed,
        instead of memory of the arena. The range's pages count as committed until the range is released
        whole. The caller keeps the memfd unchanged until then. Host memory only.

        Raises:
            InsufficientMemoryError: the pages exceed the limit, or the system has no memory for their
                tables.
        """
        ...

    def tensor(self, addresses: AddressRange) -> Tensor:
        """The range as a uint8 tensor ``[num_bytes]`` that shares its memory, valid until
        ``free_range``. Only committed pages of it may be touched: the others have no memory behind them."""
        ...

    def free_range(self, addresses: AddressRange) -> None:
        """Releases the committed pages of a range and gives its addresses back."""
        ...

    def trim(self) -> int:
        """Gives the stock back to the system; returns its bytes."""
        ...

    def set_limit(self, num_bytes: int) -> int:
        """Sets how many bytes the arena may hold from now on, stock included, up to the capacity. A commit beyond
        that is refused. Stock beyond it leaves at once, and so does memory that is released while the arena is
        above it; no committed page is taken away. Returns the bytes that left at once.
        """
        ...

    def close(self) -> None:
        """Gives everything back to the system. Idempotent."""
        ...


class PhysicalMemory(Protocol):
    """A kind of memory. Pages have numbers in ``[0, capacity)``; runs of consecutive numbers are mapped
    fastest.

    Methods are called from several threads at once, never two at the same time for the same page or the same
    address.
    """

    def reserve(self, num_bytes: int) -> int:
        """Reserves fresh addresses without memory behind them; returns the first. Raises
        InsufficientMemoryError."""
        ...

    def unreserve(self, address: int, num_bytes: int) -> None: ...

    def create(self, first: int, num_pages: int) -> None:
        """Makes the pages from number ``first`` on physical; all or nothing. Raises
        InsufficientMemoryError."""
        ...

    def destroy(self, first: int, num_pages: int) -> None:
        """Gives unmapped pages back to the system."""
        ...

    def map(self, address: int, pages: Sequence[int]) -> None:
        """Maps physical pages one after the other from ``address``; on an error none of these addresses
        has memory behind it. Raises InsufficientMemoryError."""
        ...

    def unmap(self, address: int, num_pages: int) -> None: ...

    def lend(self, address: int, num_bytes: int, descriptor: int) -> None:
        """Maps the first ``num_bytes`` of a memfd, read-only. Raises InsufficientMemoryError."""
        ...

    def tensor(self, address: int, num_bytes: int) -> Tensor: ...

    def close(self) -> None: ...


def contiguous_runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Runs of consecutive numbers in an ascending sequence, as pairs of the first and the count: ``[1, 2,
    5]`` gives ``(1, 2), (5, 1)``."""
    first = length = 0
    for number in numbers:
        if length and number == first + length:
            length += 1
            continue
        if length:
            yield first, length
        first, length = number, 1
    if length:
        yield first, length
