"""The arena's promises, kept by every kind of memory there is; and what only host memory can show."""

from __future__ import annotations

import fcntl
import os
import resource
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from support.gpu import GPU
from support.until import until

from memory_manager.arena.cuda_arena import CudaArena
from memory_manager.arena.host_arena import HostArena, HostMemory
from memory_manager.arena.paged_arena import PagedArena
from memory_manager.arena.protocol import AddressRange, contiguous_runs
from memory_manager.kv_spec import PAGE_BYTES as PAGE
from mooring.errors import InsufficientMemoryError, InternalError

KINDS = [pytest.param(HostArena, id="host"), pytest.param(CudaArena, id="cuda", marks=GPU)]
MakeArena = Callable[..., PagedArena]


@pytest.fixture(params=KINDS)
def make_arena(request: pytest.FixtureRequest) -> Iterator[MakeArena]:
    arenas: list[PagedArena] = []

    def make(num_pages: int, stock_pages: int = 4) -> PagedArena:
        arena: PagedArena = request.param(num_pages * PAGE, stock_limit_bytes=stock_pages * PAGE)
        arenas.append(arena)
        return arena

    yield make
    for arena in arenas:
        arena.close()


def test_reserved_addresses_cost_no_memory_and_round_up(make_arena: MakeArena) -> None:
    arena = make_arena(2)
    addresses = arena.reserve(100 * PAGE + 1)  # far past the capacity: only commits count
    assert addresses.num_bytes == 101 * PAGE
    assert arena.committed_bytes == arena.stock_bytes == 0


def test_committed_pages_keep_what_is_written_and_share_it_with_every_tensor(make_arena: MakeArena) -> None:
    arena = make_arena(4)
    addresses = arena.reserve(8 * PAGE)
    arena.commit(addresses, 5, 2)
    arena.commit(addresses, 0, 1)
    assert arena.committed_bytes == 3 * PAGE
    one, other = arena.tensor(addresses), arena.tensor(addresses)
    assert one.dtype == torch.uint8
    assert one.shape == (8 * PAGE,)
    assert one.data_ptr() == addresses.address
    one[5 * PAGE : 7 * PAGE] = 7
    one[:PAGE] = 9
    assert bool((other[5 * PAGE : 7 * PAGE] == 7).all())
    assert bool((other[:PAGE] == 9).all())


def test_addresses_survive_release_and_commit(make_arena: MakeArena) -> None:
    arena = make_arena(2)
    addresses = arena.reserve(2 * PAGE)
    arena.commit(addresses, 0, 2)
    view = arena.tensor(addresses)
    arena.release(addresses, 0, 2)
    arena.commit(addresses, 0, 2)
    view[:] = 3
    assert int(view[-1]) == 3


def test_a_page_released_by_one_range_serves_another_without_new_memory(make_arena: MakeArena) -> None:
    arena = make_arena(2)
    first, second = arena.reserve(2 * PAGE), arena.reserve(2 * PAGE)
    arena.commit(first, 0, 2)
    arena.release(first, 0, 2)
    assert (arena.committed_bytes, arena.stock_bytes) == (0, 2 * PAGE)
    arena.commit(second, 0, 1)
    assert (arena.committed_bytes, arena.stock_bytes) == (PAGE, PAGE)


def test_live_pages_of_two_ranges_never_share_memory(make_arena: MakeArena) -> None:
    arena = make_arena(6)
    first, second = arena.reserve(3 * PAGE), arena.reserve(3 * PAGE)
    arena.commit(first, 0, 3)
    arena.release(first, 1, 1)  # leaves a hole, so the next run of physical pages is broken
    arena.commit(second, 0, 3)
    a, b = arena.tensor(first), arena.tensor(second)
    a[:PAGE], a[2 * PAGE :], b[:] = 1, 2, 3
    assert int(a[0]) == 1
    assert int(a[2 * PAGE]) == 2
    assert bool((b == 3).all())


def test_capacity_is_a_hard_limit_and_a_refused_commit_changes_nothing(make_arena: MakeArena) -> None:
    arena = make_arena(3)
    addresses = arena.reserve(8 * PAGE)
    arena.commit(addresses, 0, 2)
    with pytest.raises(InsufficientMemoryError):
        arena.commit(addresses, 2, 2)
    assert arena.committed_bytes == 2 * PAGE
    arena.commit(addresses, 2, 1)  # exactly full is fine


def test_the_stock_is_bounded_and_trim_empties_it(make_arena: MakeArena) -> None:
    arena = make_arena(6, stock_pages=2)
    addresses = arena.reserve(6 * PAGE)
    arena.commit(addresses, 0, 6)
    arena.release(addresses, 0, 5)
    assert arena.stock_bytes == 2 * PAGE
    assert arena.trim() == 2 * PAGE
    assert arena.stock_bytes == 0
    arena.commit(addresses, 0, 5)  # pages that left can come back


def test_free_range_gives_back_everything_it_held(make_arena: MakeArena) -> None:
    arena = make_arena(4)
    addresses = arena.reserve(4 * PAGE)
    arena.commit(addresses, 0, 1)
    arena.commit(addresses, 2, 2)
    arena.free_range(addresses)
    assert arena.committed_bytes == 0
    with pytest.raises(InternalError, match="no range"):
        arena.commit(addresses, 0, 1)


@pytest.mark.parametrize(("first", "count"), [(0, 1), (1, 2), (3, 2), (-1, 1)])
def test_committing_twice_or_outside_is_refused(make_arena: MakeArena, first: int, count: int) -> None:
    arena = make_arena(4)
    addresses = arena.reserve(4 * PAGE)
    arena.commit(addresses, 0, 2)
    with pytest.raises(InternalError):
        arena.commit(addresses, first, count)
    assert arena.committed_bytes == 2 * PAGE


def test_releasing_what_is_not_committed_is_refused_and_releases_nothing(make_arena: MakeArena) -> None:
    arena = make_arena(4)
    addresses = arena.reserve(4 * PAGE)
    arena.commit(addresses, 0, 2)
    with pytest.raises(InternalError, match="page 2 is not committed"):
        arena.release(addresses, 0, 3)
    assert arena.committed_bytes == 2 * PAGE


def test_close_is_idempotent_and_takes_live_ranges_with_it(make_arena: MakeArena) -> None:
    arena = make_arena(2)
    arena.commit(arena.reserve(PAGE), 0, 1)
    arena.close()
    arena.close()
    assert arena.committed_bytes == arena.stock_bytes == 0


def test_threads_that_commit_at_once_get_pages_of_their_own(make_arena: MakeArena) -> None:
    """Four threads over a capacity and a stock so tight that pages are always on their way between
    them; each fills its pages with its own number and must find it there."""
    num_threads, pages_each = 4, 3
    arena = make_arena(num_threads * pages_each, stock_pages=2)
    wrong: list[str] = []

    def work(number: int, addresses: AddressRange) -> None:
        view = arena.tensor(addresses).view(pages_each, PAGE)
        for _ in range(25):
            arena.commit(addresses, 0, pages_each)
            view[:, :8] = number
            if not bool((view[:, :8] == number).all()):
                wrong.append(f"thread {number} shares a page")
            arena.release(addresses, 0, pages_each)

    ranges = [arena.reserve(pages_each * PAGE) for _ in range(num_threads)]
    threads = [threading.Thread(target=work, args=(n, ranges[n]), daemon=True) for n in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []
    assert arena.committed_bytes == 0
    assert arena.stock_bytes <= 2 * PAGE


# --- host memory: the system's own figures


def _resident_shared_bytes() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssShmem"))


def test_host_memory_is_really_there_and_really_leaves() -> None:
    before = _resident_shared_bytes()
    arena = HostArena(32 * PAGE, stock_limit_bytes=8 * PAGE)
    addresses = arena.reserve(32 * PAGE)
    arena.commit(addresses, 0, 16)
    # Committed pages are touched already: no step pays for it.
    assert arena.allocated_bytes() == 16 * PAGE
    assert _resident_shared_bytes() - before >= 16 * PAGE

    arena.release(addresses, 0, 16)
    assert arena.allocated_bytes() == arena.stock_bytes == 8 * PAGE  # what exceeds the stock left at once
    assert _resident_shared_bytes() - before < PAGE  # and the stock is not in our resident set

    arena.trim()
    assert arena.allocated_bytes() == 0
    arena.close()


def test_fresh_host_pages_read_as_zero_and_stocked_ones_keep_their_past() -> None:
    arena = HostArena(2 * PAGE)
    addresses = arena.reserve(2 * PAGE)
    arena.commit(addresses, 0, 1)
    view = arena.tensor(addresses)
    assert not bool(view[:PAGE].any())
    view[:PAGE] = 5
    arena.release(addresses, 0, 1)
    arena.commit(addresses, 1, 1)
    assert int(view[PAGE]) == 5  # why nobody may read what they did not write
    arena.close()


class _ShortMemory(HostMemory):
    """Host memory whose system has no two new pages at once."""

    def create(self, first: int, num_pages: int) -> None:
        if num_pages == 2:
            raise InsufficientMemoryError("the system has no more")
        super().create(first, num_pages)


def test_a_system_that_runs_out_in_mid_commit_leaves_the_books_exact() -> None:
    memory = _ShortMemory(8 * PAGE)
    arena = PagedArena(memory, 8 * PAGE, 8 * PAGE)
    kept, wanted = arena.reserve(8 * PAGE), arena.reserve(8 * PAGE)
    for page in range(3):
        arena.commit(kept, page, 1)
    arena.release(kept, 0, 1)
    with pytest.raises(InsufficientMemoryError):
        arena.commit(wanted, 0, 3)  # page 0 again, then a run of two
    assert arena.committed_bytes == 2 * PAGE
    assert arena.stock_bytes == 0  # memory is short: nothing is kept back
    assert memory.allocated_bytes() == 2 * PAGE
    for page in range(3):
        arena.commit(wanted, page, 1)
    arena.tensor(wanted)[: 3 * PAGE] = 1
    arena.close()


class _SlowMemory(HostMemory):
    """Host memory that gives pages back only when the test lets it."""

    def __init__(self, capacity_bytes: int) -> None:
        super().__init__(capacity_bytes)
        self.leaving = threading.Event()
        self.may_leave = threading.Event()

    def destroy(self, first: int, num_pages: int) -> None:
        self.leaving.set()
        assert self.may_leave.wait(timeout=30)
        super().destroy(first, num_pages)


def test_a_commit_waits_for_pages_that_are_just_leaving() -> None:
    memory = _SlowMemory(2 * PAGE)
    arena = PagedArena(memory, 2 * PAGE, 0)
    first, second = arena.reserve(2 * PAGE), arena.reserve(2 * PAGE)
    arena.commit(first, 0, 2)
    releasing = threading.Thread(target=arena.release, args=(first, 0, 2), daemon=True)
    releasing.start()
    assert memory.leaving.wait(timeout=30)
    committing = threading.Thread(target=arena.commit, args=(second, 0, 1), daemon=True)
    committing.start()
    committing.join(timeout=0.05)
    assert committing.is_alive()
    memory.may_leave.set()
    for thread in (committing, releasing):
        thread.join(timeout=30)
        assert not thread.is_alive()
    assert arena.committed_bytes == PAGE
    assert memory.allocated_bytes() == PAGE
    arena.close()


def test_a_commit_whose_pages_a_third_thread_took_meanwhile_is_refused_and_does_not_hang() -> None:
    memory = _SlowMemory(3 * PAGE)
    arena = PagedArena(memory, 3 * PAGE, 0)
    first, second, third = (arena.reserve(3 * PAGE) for _ in range(3))
    arena.commit(first, 0, 2)
    releasing = threading.Thread(target=arena.release, args=(first, 0, 2), daemon=True)
    releasing.start()
    assert memory.leaving.wait(timeout=30)
    refused: list[InsufficientMemoryError] = []

    def commit() -> None:
        try:
            arena.commit(second, 0, 3)
        except InsufficientMemoryError as error:
            refused.append(error)

    committing = threading.Thread(target=commit, daemon=True)
    committing.start()
    committing.join(timeout=0.05)
    assert committing.is_alive()
    arena.commit(third, 0, 1)
    memory.may_leave.set()
    for thread in (committing, releasing):
        thread.join(timeout=5)
        assert not thread.is_alive()
    assert len(refused) == 1
    assert arena.committed_bytes == PAGE
    arena.close()


def test_no_address_space_is_an_error_of_ours_not_a_crash() -> None:
    arena = HostArena(PAGE)
    with pytest.raises(InsufficientMemoryError, match="mmap"):
        arena.reserve(1 << 62)
    arena.close()


def test_contiguous_runs() -> None:
    assert list(contiguous_runs([])) == []
    assert list(contiguous_runs([0])) == [(0, 1)]
    assert list(contiguous_runs([1, 2, 3, 7, 9, 10])) == [(1, 3), (7, 1), (9, 2)]


# --- stock kept ahead of need, and what makes it leave


@pytest.fixture(params=KINDS)
def ready_arena(request: pytest.FixtureRequest) -> Iterator[PagedArena]:
    arena: PagedArena = request.param(16 * PAGE, stock_limit_bytes=16 * PAGE, ready_bytes=4 * PAGE)
    yield arena
    arena.close()


def test_stock_is_made_ahead_of_need_and_made_again_when_it_was_used(ready_arena: PagedArena) -> None:
    until(lambda: ready_arena.stock_bytes == 4 * PAGE)
    addresses = ready_arena.reserve(16 * PAGE)
    ready_arena.commit(addresses, 0, 3)
    until(lambda: ready_arena.stock_bytes == 4 * PAGE)
    ready_arena.commit(addresses, 3, 11)  # what is left of the capacity bounds the stock
    until(lambda: ready_arena.stock_bytes == 2 * PAGE)
    ready_arena.release(addresses, 0, 14)
    assert ready_arena.stock_bytes == 16 * PAGE  # what was used before is kept beyond what is made ahead


def test_a_falling_limit_takes_stock_at_once_and_released_pages_as_they_come(ready_arena: PagedArena) -> None:
    until(lambda: ready_arena.stock_bytes == 4 * PAGE)
    addresses = ready_arena.reserve(16 * PAGE)
    ready_arena.commit(addresses, 0, 8)
    ready_arena.set_limit(6 * PAGE)
    until(lambda: ready_arena.stock_bytes == 0)
    assert ready_arena.committed_bytes == 8 * PAGE  # what is in use stays
    ready_arena.release(addresses, 0, 1)
    assert ready_arena.stock_bytes == 0
    ready_arena.release(addresses, 1, 4)
    assert (ready_arena.committed_bytes, ready_arena.stock_bytes) == (3 * PAGE, 3 * PAGE)
    ready_arena.set_limit(16 * PAGE)
    until(lambda: ready_arena.stock_bytes >= 4 * PAGE)


def test_what_exceeds_the_limit_is_refused_and_stock_makes_room_within_it(ready_arena: PagedArena) -> None:
    addresses = ready_arena.reserve(16 * PAGE)
    ready_arena.commit(addresses, 0, 8)
    ready_arena.set_limit(6 * PAGE)
    with pytest.raises(InsufficientMemoryError, match="may hold"):
        ready_arena.commit(addresses, 8, 1)
    ready_arena.release(addresses, 0, 4)
    assert (ready_arena.committed_bytes, ready_arena.stock_bytes, ready_arena.limit_bytes) == (
        4 * PAGE,
        2 * PAGE,
        6 * PAGE,
    )
    with pytest.raises(InsufficientMemoryError):
        ready_arena.commit(addresses, 0, 3)
    ready_arena.commit(addresses, 0, 2)
    ready_arena.set_limit(7 * PAGE)
    ready_arena.commit(addresses, 2, 1)
    assert (ready_arena.committed_bytes, ready_arena.stock_bytes) == (7 * PAGE, 0)


def test_the_system_never_gives_more_than_the_limit_however_it_moves() -> None:
    arena = HostArena(32 * PAGE, stock_limit_bytes=32 * PAGE, ready_bytes=32 * PAGE, limit_bytes=0)
    addresses = arena.reserve(32 * PAGE)
    for pages in [4, 20, 8, 32, 1, 16, 2] * 4:
        arena.set_limit(pages * PAGE)
        assert arena.allocated_bytes() <= pages * PAGE
        arena.commit(addresses, 0, max(1, pages // 2))
        assert arena.allocated_bytes() <= pages * PAGE
        arena.release(addresses, 0, max(1, pages // 2))
    arena.close()


def test_a_commit_out_of_ready_stock_touches_nothing_new() -> None:
    arena = HostArena(8 * PAGE, stock_limit_bytes=8 * PAGE, ready_bytes=8 * PAGE)
    until(lambda: arena.stock_bytes == 8 * PAGE)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    before_bytes = arena.allocated_bytes()
    arena.commit(arena.reserve(8 * PAGE), 0, 8)
    assert arena.allocated_bytes() == before_bytes == 8 * PAGE
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults < 8 * 512 / 4
    arena.close()


def test_a_system_without_memory_ends_no_thread_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    memory = _ShortMemory(8 * PAGE)
    arena = PagedArena(memory, 8 * PAGE, 8 * PAGE, ready_bytes=4 * PAGE)
    until(lambda: "kept ready" in caplog.text)
    assert arena.stock_bytes == 0
    addresses = arena.reserve(PAGE)
    arena.commit(addresses, 0, 1)
    arena.close()


# --- memory lent to the arena


def _memfd(content: bytes) -> int:
    descriptor = os.memfd_create("lent", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(descriptor, content)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE)
    return descriptor


def test_lent_memory_is_read_at_the_ranges_address_and_counts_as_committed() -> None:
    content = bytes(range(256)) * (PAGE // 128 + 5)
    descriptor = _memfd(content)
    arena = HostArena(6 * PAGE, stock_limit_bytes=6 * PAGE)
    addresses = arena.reserve(3 * PAGE)
    arena.lend(addresses, descriptor, len(content))
    assert (arena.committed_bytes, arena.allocated_bytes()) == (3 * PAGE, 0)
    assert arena.tensor(addresses)[: len(content)].numpy().tobytes() == content
    with pytest.raises(InsufficientMemoryError):
        arena.commit(arena.reserve(4 * PAGE), 0, 4)  # it counts against the capacity
    with pytest.raises(InternalError):
        arena.commit(addresses, 0, 1)
    arena.release(addresses, 0, 3)
    assert (arena.committed_bytes, arena.stock_bytes) == (0, 0)
    arena.commit(addresses, 0, 3)  # its own memory again, at the same address, writable
    arena.tensor(addresses)[:] = 1
    arena.close()
    os.close(descriptor)


def test_what_cannot_be_lent_leaves_the_books_as_they_were() -> None:
    arena = HostArena(2 * PAGE)
    addresses = arena.reserve(2 * PAGE)
    reader, writer = os.pipe()
    with pytest.raises(OSError, match="mmap"):
        arena.lend(addresses, reader, PAGE)
    assert arena.committed_bytes == 0
    arena.commit(addresses, 0, 2)
    arena.close()
    os.close(reader)
    os.close(writer)
