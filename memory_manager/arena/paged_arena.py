"""The arena's books over any kind of memory::

free numbers ──create──▶ stock ──map──▶ committed
     ▲                    │ ▲               │
     └──────destroy───────┘ └─────unmap─────┘
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

from memory_manager.arena.protocol import AddressRange, PhysicalMemory, contiguous_runs
from memory_manager.arena.stock_keeper import StockKeeper
from memory_manager.kv_spec import PAGE_BYTES
from mooring.errors import InsufficientMemoryError, InternalError
from mooring.units import format_bytes

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PagedArena"]

# Made at a time, so that a commit that needs the very last pages waits for no more than these.
_RESTOCK_PAGES = 2
_LENT = -1  # stands in a range's table for a page whose memory is not this arena's


class PagedArena:
    """An ``Arena`` over any ``PhysicalMemory``.

    The lock covers the books only. Pages are taken out of the books before the memory is mapped and put
    back after it is unmapped, so a page is never in two hands, and the long calls (creating and
    mapping gigabytes for a load) hold up no other thread.

    Args:
        memory: the kind of memory; the arena owns it and closes it.
        capacity_bytes: most physical memory at any time, stock included; rounded down to pages.
        stock_limit_bytes: most stock; released pages beyond it go back to the system at once.
        ready_bytes: stock that a thread makes ahead of need, as far as the limit allows.
        limit_bytes: limit at first (``Arena.set_limit``); None is the capacity.
    """

    def __init__(
        self,
        memory: PhysicalMemory,
        capacity_bytes: int,
        stock_limit_bytes: int,
        ready_bytes: int = 0,
        limit_bytes: int | None = None,
    ) -> None:
        self._memory = memory
        self._capacity_pages = self._limit_pages = capacity_bytes // PAGE_BYTES
        if limit_bytes is not None:
            self._limit_pages = min(limit_bytes // PAGE_BYTES, self._capacity_pages)
        self._ready_pages = min(ready_bytes, stock_limit_bytes) // PAGE_BYTES
        self._stock_limit_pages = stock_limit_bytes // PAGE_BYTES
        self._lock = threading.Lock()
        self._returned = threading.Condition(self._lock)  # pages came back from the system
        self._stock: list[int] = []  # heap of physical pages that are mapped nowhere
        self._hollow = list(range(self._capacity_pages))  # heap of page numbers without memory behind them
        self._num_committed = 0  # lent pages included
        self._num_changing = (
            0  # physical pages that are being made for the stock, or given back to the system
        )
        self._tables: dict[AddressRange, list[int | None]] = {}  # physical page of each page of a range
        self._closed = False
        self._keeper = StockKeeper(self._restock) if self._ready_pages else None

    @property
    def page_bytes(self) -> int:
        return PAGE_BYTES

    @property
    def capacity_bytes(self) -> int:
        return self._capacity_pages * PAGE_BYTES

    @property
    def limit_bytes(self) -> int:
        return self._limit_pages * PAGE_BYTES

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
            self.trim()  # memory is short
            raise

    def release(self, addresses: AddressRange, first_page: int, num_pages: int) -> None:
        span = range(first_page, first_page + num_pages)
        self._require(addresses, span, committed=True)
        if num_pages:
            self._memory.unmap(addresses.address + first_page * PAGE_BYTES, num_pages)
            self._put_back(addresses, span)

    def lend(self, addresses: AddressRange, descriptor: int, num_bytes: int) -> None:
        span = range(addresses.num_bytes // PAGE_BYTES)
        with self._lock:
            table = self._require(addresses, span, committed=False)
            self._require_room(len(span))
            table[:] = [_LENT] * len(span)
            self._num_committed += len(span)
        self._keep_to_limit()  # stock makes room first
        try:
            self._memory.lend(addresses.address, num_bytes, descriptor)
        except BaseException:  # whatever stopped it, nothing is lent
            self._put_back(addresses, span)
            raise

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

    def set_limit(self, num_bytes: int) -> int:
        with self._lock:
            self._limit_pages = min(max(0, num_bytes) // PAGE_BYTES, self._capacity_pages)
        left_bytes = self._keep_to_limit()
        self._look()
        return left_bytes

    def close(self) -> None:
        if self._closed:
            return
        if self._keeper is not None:
            self._keeper.close()
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
        """Returns the range's table, after checking that all pages of ``span`` are committed, or that none
        is."""
        table = self._table(addresses)
        if span.start < 0 or span.stop > len(table) or span.stop < span.start:
            raise InternalError(f"pages {span} lie outside a range of {len(table)}")
        for page in span:
            if (table[page] is not None) != committed:
                raise InternalError(f"page {page} is {'not' if committed else 'already'} committed")
        return table

    def _take(self, addresses: AddressRange, span: range) -> list[int]:
        """Finds physical pages for ``span``, first in the stock, then new ones, and enters them into the
        books."""
        with self._lock:
            table = self._require(addresses, span, committed=False)
            self._require_room(len(span))
            while self._num_committed + len(span) + self._num_changing > self._limit_pages:
                self._returned.wait()  # another thread makes pages just now, or gives them back
                self._require_room(len(span))  # and a third may have taken them
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
                self._returned.notify_all()
            self.trim()  # memory is short
            raise
        self._look()
        return pages

    def _require_room(self, num_pages: int) -> None:
        if self._num_committed + num_pages > self._limit_pages:
            raise InsufficientMemoryError(
                f"the arena may hold {format_bytes(self.limit_bytes)}, which have no room for "
                f"{format_bytes(num_pages * PAGE_BYTES)} beside {format_bytes(self.committed_bytes)}"
            )

    def _put_back(self, addresses: AddressRange, span: range) -> None:
        """Moves the unmapped pages of ``span`` into the stock, and the stock beyond its limit to the
        system."""
        with self._lock:
            table = self._tables[addresses]
            self._to_stock(page for page in table[span.start : span.stop] if page not in (None, _LENT))
            table[span.start : span.stop] = [None] * len(span)
            self._num_committed -= len(span)
        self._shrink_stock()
        self._look()

    def _most_stock(self) -> int:
        """Pages of stock that may be kept now."""
        return min(self._stock_limit_pages, max(0, self._limit_pages - self._num_committed))

    def _look(self) -> None:
        if self._keeper is not None:
            self._keeper.look()

    def _restock(self) -> bool:
        """Makes a few pages for the stock; False if the stock has as many as it should."""
        with self._lock:
            wanted = min(self._ready_pages, self._most_stock() - self._num_changing) - len(self._stock)
            pages = [
                heapq.heappop(self._hollow) for _ in range(min(wanted, _RESTOCK_PAGES, len(self._hollow)))
            ]
            self._num_changing += len(pages)
        if not pages:
            return False
        created = 0
        try:
            for first, length in contiguous_runs(pages):
                self._memory.create(first, length)
                created += length
        finally:
            with self._lock:
                self._num_changing -= len(pages)
                self._to_stock(pages[:created])
                for page in pages[created:]:
                    heapq.heappush(self._hollow, page)
                self._returned.notify_all()
        self._shrink_stock()  # the limit may have fallen meanwhile
        return True

    def _to_stock(self, pages: Iterable[int]) -> None:
        for page in pages:
            heapq.heappush(self._stock, page)

    def _keep_to_limit(self) -> int:
        """Gives stock back until all physical pages are within the limit, or only committed ones are left; returns
        the bytes."""
        left_bytes = 0
        while True:
            left_bytes += self._shrink_stock()
            with self._lock:
                room = max(0, self._limit_pages - self._num_committed)
                if len(self._stock) + self._num_changing <= room:
                    return left_bytes
                if self._num_changing:
                    self._returned.wait()

    def _shrink_stock(self, most_pages: int | None = None) -> int:
        """Gives stock beyond ``most_pages``, by default beyond what may be kept now, back to the system; returns the
        bytes."""
        with self._lock:
            most = self._most_stock() if most_pages is None else most_pages
            if len(self._stock) <= most:
                return 0
            self._stock.sort()  # a sorted list is a heap; the highest numbers go
            surplus = self._stock[most:]
            del self._stock[most:]
            self._num_changing += len(surplus)
        try:
            for first, length in contiguous_runs(surplus):
                self._memory.destroy(first, length)
        finally:
            with self._lock:
                self._num_changing -= len(surplus)
                for page in surplus:
                    heapq.heappush(self._hollow, page)
                self._returned.notify_all()
        return len(surplus) * PAGE_BYTES
