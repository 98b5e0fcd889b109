"""The arena: address ranges reserved once, physical pages committed into them on demand.

Weights and the KV pool live in ranges of one arena per worker, so memory moves between them page by
page while addresses, tensors and captured graphs stay valid. Creating physical memory is the slow part
(first touch on a host, ``cuMemCreate`` on a GPU); mapping it is quick. So released pages wait in a
stock, still physical, and the next commit only maps them.

``Arena`` is the interface. ``PagedArena`` keeps the books for it; what a page is and how it is mapped is
a ``PhysicalMemory``, of which ``memory_manager.host_arena`` and ``memory_manager.cuda_arena`` are the
two kinds::

    free numbers ──create──▶ stock ──map──▶ committed
         ▲                    │ ▲               │
         └──────destroy───────┘ └─────unmap─────┘
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from memory_manager.kv_spec import PAGE_BYTES
from mooring.errors import InsufficientMemoryError, InternalError
from mooring.units import MIB, format_bytes

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "DEFAULT_STOCK_LIMIT_BYTES",
    "AddressRange",
    "Arena",
    "PagedArena",
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
    side (a load must not hold up the step). One range is one thread's at a time, and ``close`` comes
    last, when no other call is under way.

    Contents: a page that is committed holds whatever its last owner left in it. Nobody may read what
    they did not write.
    """

    @property
    def page_bytes(self) -> int: ...

    @property
    def capacity_bytes(self) -> int:
        """Most physical memory at any time, stock included."""
        ...

    @property
    def committed_bytes(self) -> int:
        """Physical memory mapped into ranges."""
        ...

    @property
    def stock_bytes(self) -> int:
        """Physical memory that is mapped nowhere and waits for the next commit."""
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
            InsufficientMemoryError: past the capacity, or the system has no more.
        """
        ...

    def release(self, addresses: AddressRange, first_page: int, num_pages: int) -> None:
        """Takes the memory away from pages that are all committed. On a GPU the caller has waited for
        every kernel that could touch them."""
        ...

    def tensor(self, addresses: AddressRange) -> Tensor:
        """The range as a uint8 tensor ``[num_bytes]`` that shares its memory, valid until
        ``free_range``. Only committed pages may be touched: others are no memory at all."""
        ...

    def free_range(self, addresses: AddressRange) -> None:
        """Releases what is committed and gives the addresses back."""
        ...

    def trim(self) -> int:
        """Gives the stock back to the system; returns the bytes."""
        ...

    def close(self) -> None:
        """Gives everything back to the system. Idempotent."""
        ...


class PhysicalMemory(Protocol):
    """A kind of memory. Pages have numbers in ``[0, capacity)``; neighbours are mapped fastest in runs.

    Methods are called from several threads at once, never two at the same time for the same page or
    the same address.
    """

    def reserve(self, num_bytes: int) -> int:
        """Returns the address of fresh, unbacked addresses. Raises InsufficientMemoryError."""
        ...

    def unreserve(self, address: int, num_bytes: int) -> None: ...

    def create(self, first: int, num_pages: int) -> None:
        """Makes numbered pages physical; all or nothing. Raises InsufficientMemoryError."""
        ...

    def destroy(self, first: int, num_pages: int) -> None:
        """Gives unmapped pages back to the system."""
        ...

    def map(self, address: int, pages: Sequence[int]) -> None:
        """Maps physical pages one after the other from ``address``; on an error the whole run is
        unbacked again. Raises InsufficientMemoryError."""
        ...

    def unmap(self, address: int, num_pages: int) -> None: ...

    def tensor(self, address: int, num_bytes: int) -> Tensor: ...

    def close(self) -> None: ...


def contiguous_runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Neighbouring runs of an ascending sequence: ``[1, 2, 5]`` gives ``(1, 2), (5, 1)``."""
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


class PagedArena:
    """An ``Arena`` over any ``PhysicalMemory``.

    The lock covers the books only. Pages are taken out of them before the memory is mapped and put
    back after it is unmapped, so a page is never in two hands, and the long calls (creating and
    mapping gigabytes for a load) hold up nobody.

    Args:
        memory: the kind of memory; the arena owns it and closes it.
        capacity_bytes: most physical memory at any time, stock included; rounded down to pages.
        stock_limit_bytes: released pages beyond this go back to the system at once.
    """

    def __init__(self, memory: PhysicalMemory, capacity_bytes: int, stock_limit_bytes: int) -> None:
        self._memory = memory
        self._capacity_pages = capacity_bytes // PAGE_BYTES
        self._stock_limit_pages = stock_limit_bytes // PAGE_BYTES
        self._lock = threading.Lock()
        self._returned = threading.Condition(self._lock)  # pages came back from the system
        self._stock: list[int] = []  # heap of physical pages that are mapped nowhere
        self._hollow = list(range(self._capacity_pages))  # heap of numbers without memory behind them
        self._num_committed = 0
        self._tables: dict[AddressRange, list[int | None]] = {}  # physical page of each virtual one
        self._closed = False

    @property
    def page_bytes(self) -> int:
        return PAGE_BYTES

    @property
    def capacity_bytes(self) -> int:
        return self._capacity_pages * PAGE_BYTES

    @property
    def committed_bytes(self) -> int:
        return self._num_committed * PAGE_BYTES

    @property
    def stock_bytes(self) -> int:
        return len(self._stock) * PAGE_BYTES

    def reserve(self, num_bytes: int) -> AddressRange:
        if num_bytes <= 0:
            raise ValueError(f"an address range needs at least one byte, not {num_bytes}")
        num_pages = -(-num_bytes // PAGE_BYTES)
        address = self._memory.reserve(num_pages * PAGE_BYTES)
        addresses = AddressRange(address, num_pages * PAGE_BYTES)
        with self._lock:
            self._tables[addresses] = [None] * num_pages
        return addresses

    def commit(self, addresses: AddressRange, first_page: int, num_pages: int) -> None:
        span = range(first_page, first_page + num_pages)
        pages = self._take(addresses, span)
        address = addresses.address + first_page * PAGE_BYTES
        try:
            self._memory.map(address, pages)
        except BaseException:  # whatever stopped it, the pages go back into the books
            self._put_back(addresses, span)
            self.trim()  # memory is short, and some of these were never physical
            raise

    def release(self, addresses: AddressRange, first_page: int, num_pages: int) -> None:
        span = range(first_page, first_page + num_pages)
        self._require(addresses, span, committed=True)
        if num_pages:
            self._memory.unmap(addresses.address + first_page * PAGE_BYTES, num_pages)
            self._put_back(addresses, span)

    def tensor(self, addresses: AddressRange) -> Tensor:
        self._table(addresses)
        return self._memory.tensor(addresses.address, addresses.num_bytes)

    def free_range(self, addresses: AddressRange) -> None:
        table = self._table(addresses)
        held = [page for page, physical in enumerate(table) if physical is not None]
        for first, length in contiguous_runs(held):
            self.release(addresses, first, length)
        with self._lock:
            del self._tables[addresses]
        self._memory.unreserve(addresses.address, addresses.num_bytes)

    def trim(self) -> int:
        return self._shrink_stock(0)

    def close(self) -> None:
        if self._closed:
            return
        for addresses in list(self._tables):
            self.free_range(addresses)
        self.trim()
        self._closed = True
        self._memory.close()

    def _table(self, addresses: AddressRange) -> list[int | None]:
        table = self._tables.get(addresses)
        if table is None:
            raise InternalError(f"no range of this arena: {addresses}")
        return table

    def _require(self, addresses: AddressRange, span: range, *, committed: bool) -> list[int | None]:
        """The range's table, after checking that all of ``span`` is committed, or none of it."""
        table = self._table(addresses)
        if span.start < 0 or span.stop > len(table) or span.stop < span.start:
            raise InternalError(f"pages {span} lie outside a range of {len(table)}")
        for page in span:
            if (table[page] is not None) != committed:
                raise InternalError(f"page {page} is {'not' if committed else 'already'} committed")
        return table

    def _take(self, addresses: AddressRange, span: range) -> list[int]:
        """Enters physical pages for ``span`` into the books: from the stock first, then new ones."""
        with self._lock:
            table = self._require(addresses, span, committed=False)
            if self._num_committed + len(span) > self._capacity_pages:
                raise InsufficientMemoryError(
                    f"the arena's {format_bytes(self.capacity_bytes)} have no room for "
                    f"{format_bytes(len(span) * PAGE_BYTES)} beside {format_bytes(self.committed_bytes)}"
                )
            while len(self._stock) + len(self._hollow) < len(span):
                self._returned.wait()  # another thread is giving pages back just now
            pages = [heapq.heappop(self._stock) for _ in range(min(len(span), len(self._stock)))]
            fresh = [heapq.heappop(self._hollow) for _ in range(len(span) - len(pages))]
            self._num_committed += len(span)
            pages = sorted(pages + fresh)
            table[span.start : span.stop] = pages
        created = 0
        try:
            for first, length in contiguous_runs(fresh):
                self._memory.create(first, length)
                created += length
        except BaseException:
            with self._lock:
                for page in fresh[created:]:
                    heapq.heappush(self._hollow, page)
                table[span.start : span.stop] = [None] * len(span)
                self._num_committed -= len(span)
                self._to_stock(set(pages) - set(fresh[created:]))
            raise
        return pages

    def _put_back(self, addresses: AddressRange, span: range) -> None:
        """Moves the unmapped pages of ``span`` into the stock, and what exceeds its limit out of it."""
        with self._lock:
            table = self._tables[addresses]
            self._to_stock(page for page in table[span.start : span.stop] if page is not None)
            table[span.start : span.stop] = [None] * len(span)
            self._num_committed -= len(span)
        self._shrink_stock(self._stock_limit_pages)

    def _to_stock(self, pages: Iterable[int]) -> None:
        for page in pages:
            heapq.heappush(self._stock, page)

    def _shrink_stock(self, num_pages: int) -> int:
        """Gives stock pages beyond ``num_pages`` back to the system; returns the bytes."""
        with self._lock:
            if len(self._stock) <= num_pages:
                return 0
            self._stock.sort()  # a sorted list is a heap; the highest numbers go
            surplus = self._stock[num_pages:]
            del self._stock[num_pages:]
        try:
            for first, length in contiguous_runs(surplus):
                self._memory.destroy(first, length)
        finally:
            with self._lock:
                for page in surplus:
                    heapq.heappush(self._hollow, page)
                self._returned.notify_all()
        return len(surplus) * PAGE_BYTES
