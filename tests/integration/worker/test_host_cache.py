"""The host cache over real files, memfds and mappings."""

from __future__ import annotations

import asyncio
import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.open_files import open_files

from memory_manager.host.cache import HostCache
from memory_manager.host.copy_file import HostCopyFile
from memory_manager.host.copy_memory import CopyMemory
from memory_manager.host.spare import HostSpare
from memory_manager.kv_spec import round_to_pages
from memory_manager.memfd import is_sealed, new_memfd
from memory_manager.ports import ArtifactRef
from memory_manager.word_sum import word_sum
from mooring.errors import ArtifactError, InsufficientMemoryError, ShuttingDownError
from mooring.units import MIB

pytestmark = pytest.mark.integration

BUDGET = 8 * MIB


@pytest.fixture
async def cache() -> AsyncIterator[HostCache]:
    cache = HostCache(BUDGET)
    yield cache
    await cache.close()


def artifact(folder: Path, key: str, num_bytes: int = 3 * MIB + 17) -> ArtifactRef:
    path = folder / f"{key}.bin"
    path.write_bytes(os.urandom(num_bytes))
    return ArtifactRef(key, path, num_bytes, b"{}")


def read_all(fd: int, num_bytes: int) -> bytes:
    return os.pread(fd, num_bytes + 1, 0)


async def test_the_copy_is_the_file_whole_and_sealed(cache: HostCache, tmp_path: Path) -> None:
    ref = artifact(tmp_path, "a")
    copy = await cache.get(ref)
    assert read_all(copy.fd, ref.num_bytes) == ref.weights_path.read_bytes()
    assert copy.seconds > 0
    assert cache.used_bytes == ref.num_bytes
    for tamper in (
        lambda: os.pwrite(copy.fd, b"x", 0),
        lambda: os.ftruncate(copy.fd, 1),
        lambda: mmap.mmap(copy.fd, 0, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
    ):
        with pytest.raises(OSError, match=r"Bad file descriptor|Invalid argument|Permission denied"):
            tamper()
    assert is_sealed(copy.fd)


# As a worker that was sent the descriptor could try it: by the descriptor, and by one that it opens itself.
ATTEMPTS = """
import errno, mmap, os, sys
fd = int(sys.argv[1])
again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
attempts = (
    lambda: mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
    lambda: mmap.mmap(again, 0, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
    lambda: os.pwrite(fd, b"stray", 0),
    lambda: os.pwrite(again, b"stray", 0),
)
for attempt in attempts:
    try:
        attempt()
        print("done")
    except OSError as error:
        print(errno.errorcode[error.errno])
"""


def attempts_to_write(fd: int) -> list[str]:
    """What a process that was given the descriptor is answered."""
    command = [sys.executable, "-c", ATTEMPTS, str(fd)]
    return subprocess.run(command, pass_fds=[fd], capture_output=True, text=True, check=True).stdout.split()


async def test_no_worker_can_write_to_a_copy_in_any_of_its_memorys_lives(tmp_path: Path) -> None:
    cache = HostCache(BUDGET)
    for key, size in (("first", 5 * MIB), ("smaller", 3 * MIB + 1), ("larger", 7 * MIB)):
        ref = artifact(tmp_path, key, size)
        copy = await cache.get(ref)
        assert attempts_to_write(copy.fd) == ["EACCES", "EPERM", "EBADF", "EPERM"]
        assert os.pread(copy.fd, size, 0) == ref.weights_path.read_bytes()
        copy.release()
    await cache.close()


async def test_copies_for_a_gpu_can_be_mapped_writable_to_be_pinned_and_have_a_checksum(
    tmp_path: Path,
) -> None:
    cache = HostCache(100 * MIB, to_be_pinned=True)
    for key, size in (
        ("large", 70 * MIB + 3),
        ("in its memory", 66 * MIB),
        ("in fresh memory", 3 * MIB + 17),
    ):
        ref = artifact(tmp_path, key, size)
        copy = await cache.get(ref)
        assert copy.checksum == word_sum(memoryview(ref.weights_path.read_bytes()))
        copy.release()
    assert is_sealed(copy.fd)
    assert attempts_to_write(copy.fd)[:2] == ["EACCES", "done"]
    await cache.close()


async def test_a_copy_that_is_discarded_is_read_again(tmp_path: Path) -> None:
    cache, ref = HostCache(BUDGET), artifact(tmp_path, "a")
    copy = await cache.get(ref)
    assert copy.checksum is None, "nobody can write to it"
    cache.discard("a")
    assert cache.contains("a"), "somebody has it"
    copy.release()
    ref.weights_path.write_bytes(b"m" * ref.num_bytes)
    cache.discard("a")
    assert (cache.contains("a"), cache.used_bytes) == (False, 0)
    assert read_all((await cache.get(ref)).fd, ref.num_bytes) == b"m" * ref.num_bytes
    await cache.close()


async def test_files_of_many_chunks_are_put_together_in_order(tmp_path: Path) -> None:
    ref = artifact(tmp_path, "large", 70 * MIB + 3)  # two chunks and a bit
    cache = HostCache(ref.num_bytes)
    copy = await cache.get(ref)
    assert read_all(copy.fd, ref.num_bytes) == ref.weights_path.read_bytes()
    await cache.close()


async def test_callers_of_one_key_share_one_read(cache: HostCache, tmp_path: Path) -> None:
    ref = artifact(tmp_path, "a")
    copies = await asyncio.gather(*(cache.get(ref) for _ in range(8)))
    assert len({copy.fd for copy in copies}) == 1
    assert cache.used_bytes == ref.num_bytes
    ref.weights_path.unlink()  # and later ones need no file at all
    assert (await cache.get(ref)).fd == copies[0].fd


async def test_the_least_recently_used_copy_that_nobody_holds_is_evicted(
    cache: HostCache, tmp_path: Path
) -> None:
    old, used, new = (artifact(tmp_path, key) for key in ("old", "used", "new"))
    for ref in (used, old, used):
        (await cache.get(ref)).release()
    await cache.get(new)
    assert not cache.contains("old")
    assert cache.contains("used")
    assert cache.contains("new")
    assert cache.used_bytes <= BUDGET


async def test_held_copies_stay_and_too_little_room_evicts_nothing(cache: HostCache, tmp_path: Path) -> None:
    ref = artifact(tmp_path, "held", 4 * MIB)
    holders = [await cache.get(ref), await cache.get(ref)]
    (await cache.get(artifact(tmp_path, "idle", 2 * MIB))).release()
    big = artifact(tmp_path, "big", 5 * MIB)
    holders[0].release()
    holders[0].release()  # idempotent: it gives back nobody else's hold
    with pytest.raises(InsufficientMemoryError, match="in use"):
        await cache.get(big)
    assert cache.contains("idle")
    holders[1].release()
    await cache.get(big)
    assert not cache.contains("held")


async def test_room_is_held_from_before_a_read_to_the_end_of_the_last_holder(
    cache: HostCache, tmp_path: Path
) -> None:
    ref, other = artifact(tmp_path, "a", 5 * MIB), artifact(tmp_path, "b", 5 * MIB)
    copy = cache.hold(ref)
    assert (cache.free_bytes, cache.used_bytes, cache.holds("a")) == (BUDGET - 5 * MIB, 0, True)
    second = cache.hold(ref)
    assert cache.free_bytes == BUDGET - 5 * MIB, "one copy serves both"
    with pytest.raises(InsufficientMemoryError, match="in use"):
        cache.hold(other)
    await copy.read()
    copy.release()
    assert cache.free_bytes == BUDGET - 5 * MIB
    second.release()
    assert (cache.free_bytes, cache.holds("a"), cache.contains("a")) == (BUDGET, False, True)
    await cache.hold(other).read()
    assert (cache.contains("a"), cache.contains("b")) == (False, True)


async def test_a_read_holds_its_room_when_all_callers_have_left(cache: HostCache, tmp_path: Path) -> None:
    copy = cache.hold(artifact(tmp_path, "a", 5 * MIB))
    reading = asyncio.create_task(copy.read())
    await asyncio.sleep(0)
    reading.cancel()
    copy.release()
    assert cache.free_bytes == BUDGET - 5 * MIB
    await asyncio.gather(*(task for task in asyncio.all_tasks() if task.get_name() == "read a"))
    assert (cache.free_bytes, cache.contains("a")) == (BUDGET, True)


async def test_what_can_never_fit_says_so(cache: HostCache, tmp_path: Path) -> None:
    with pytest.raises(InsufficientMemoryError, match="raise its budget"):
        await cache.get(artifact(tmp_path, "huge", BUDGET + 1))
    assert cache.used_bytes == 0


async def test_memory_that_is_given_up_really_leaves_the_machine(cache: HostCache, tmp_path: Path) -> None:
    """The same file by another descriptor would keep it; the cache's own is the last one."""
    first = await cache.get(artifact(tmp_path, "first", 6 * MIB))
    inode = os.fstat(first.fd).st_ino
    assert os.fstat(first.fd).st_blocks * 512 >= 6 * MIB
    first.release()
    assert cache.give_up(1) == first.num_bytes
    assert inode not in {each for _, each in open_files()}


@pytest.mark.parametrize("damage", ["short", "long", "missing", "folder"])
async def test_a_broken_file_is_the_artifacts_error_and_leaves_no_trace(
    cache: HostCache, tmp_path: Path, damage: str
) -> None:
    ref = artifact(tmp_path, "a")
    if damage == "missing":
        ref.weights_path.unlink()
    elif damage == "folder":
        ref.weights_path.unlink()
        ref.weights_path.mkdir()
    else:
        with ref.weights_path.open("r+b") as file:
            file.truncate(ref.num_bytes + (1 if damage == "long" else -1))
    before = open_files()
    results = await asyncio.gather(cache.get(ref), cache.get(ref), return_exceptions=True)
    assert [type(result) for result in results] == [ArtifactError] * 2
    assert cache.used_bytes == 0
    assert not cache.contains("a")
    assert open_files() <= before
    if damage == "folder":
        ref.weights_path.rmdir()
    ref.weights_path.write_bytes(b"m" * ref.num_bytes)  # mended
    assert read_all((await cache.get(ref)).fd, ref.num_bytes) == b"m" * ref.num_bytes


async def test_a_cancelled_caller_leaves_the_read_to_the_others(cache: HostCache, tmp_path: Path) -> None:
    ref = artifact(tmp_path, "a")
    waiters = [asyncio.create_task(cache.get(ref)) for _ in range(2)]
    await asyncio.sleep(0)
    waiters[0].cancel()
    copy = await waiters[1]
    assert copy.num_bytes == ref.num_bytes
    copy.release()  # the one hold of the caller that stayed
    await cache.get(artifact(tmp_path, "b", BUDGET))
    assert not cache.contains("a")


async def test_a_read_that_all_callers_left_still_ends_in_the_cache(cache: HostCache, tmp_path: Path) -> None:
    ref = artifact(tmp_path, "a")
    waiter = asyncio.create_task(cache.get(ref))
    await asyncio.sleep(0)
    waiter.cancel()
    assert not cache.contains("a")
    assert cache.used_bytes == ref.num_bytes  # its room is taken all the while
    for _ in range(1000):
        if cache.contains("a"):
            break
        await asyncio.sleep(0.01)
    else:
        pytest.fail("the read was lost with its last caller")
    cache_hit = await cache.get(ref)
    assert read_all(cache_hit.fd, ref.num_bytes) == ref.weights_path.read_bytes()


async def test_a_loop_that_cancels_everything_leaves_no_thread_on_closed_descriptors(
    tmp_path: Path,
) -> None:
    ref = artifact(tmp_path, "a", 70 * MIB)
    before = open_files()
    cache = HostCache(ref.num_bytes, num_readers=1)
    tasks = asyncio.all_tasks()
    waiter = asyncio.create_task(cache.get(ref))
    await asyncio.sleep(0.005)  # the first chunk is under way
    for task in asyncio.all_tasks() - tasks:
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    await cache.close()
    assert cache.used_bytes == 0
    assert open_files() <= before


async def test_close_waits_for_reads_and_closes_every_descriptor(tmp_path: Path) -> None:
    before = open_files()
    cache = HostCache(BUDGET)
    kept = await cache.get(artifact(tmp_path, "kept"))
    under_way = asyncio.create_task(cache.get(artifact(tmp_path, "late")))
    await asyncio.sleep(0)
    await cache.close()
    await cache.close()
    assert cache.used_bytes == 0
    await asyncio.gather(under_way, return_exceptions=True)
    assert open_files() <= before
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(kept.fd)
    with pytest.raises(ShuttingDownError):
        await cache.get(artifact(tmp_path, "later"))


# --- memory of copies that were evicted


@pytest.mark.parametrize("to_be_pinned", [False, True], ids=["for a CPU", "for a GPU"])
@pytest.mark.parametrize("num_bytes", [2 * MIB, 5 * MIB, 5 * MIB + 77, 8 * MIB])
async def test_what_is_read_in_place_of_another_copy_is_read_into_its_memory(
    tmp_path: Path, num_bytes: int, to_be_pinned: bool
) -> None:
    cache, before = HostCache(BUDGET, to_be_pinned=to_be_pinned), open_files()
    first = await cache.get(artifact(tmp_path, "first", 7 * MIB))
    inode = os.fstat(first.fd).st_ino
    first.release()
    for key, size in (("next", num_bytes), ("last", 7 * MIB)):
        ref = artifact(tmp_path, key, size)
        copy = await cache.get(ref)
        assert os.fstat(copy.fd).st_ino == inode
        assert os.pread(copy.fd, size, 0) == ref.weights_path.read_bytes()
        assert os.fstat(copy.fd).st_blocks * 512 <= round_to_pages(size)
        copy.release()
    await cache.close()
    assert open_files() <= before


async def test_memory_that_is_read_into_again_and_again_keeps_none_that_is_not_needed(tmp_path: Path) -> None:
    cache = HostCache(BUDGET)
    inodes = set()
    for size in (7 * MIB, 5 * MIB + 1, 3 * MIB + 1):
        copy = await cache.get(artifact(tmp_path, str(size), size))
        assert os.fstat(copy.fd).st_blocks * 512 <= round_to_pages(size)
        inodes.add(os.fstat(copy.fd).st_ino)
        copy.release()
    assert len(inodes) == 1, "all were read into the first one's"
    await cache.close()


async def test_of_the_copies_that_make_room_the_largest_ones_memory_is_read_into(tmp_path: Path) -> None:
    cache, before = HostCache(BUDGET), open_files()
    inodes = []
    for size in (MIB, 5 * MIB, 2 * MIB):
        copy = await cache.get(artifact(tmp_path, str(size), size))
        inodes.append(os.fstat(copy.fd).st_ino)
        copy.release()
    await cache.get(artifact(tmp_path, "new", BUDGET))
    assert [inode for _, inode in open_files() - before] == inodes[1:2]
    await cache.close()
    assert open_files() <= before


async def test_a_read_that_is_cancelled_before_it_begins_keeps_no_evicted_memory(tmp_path: Path) -> None:
    cache, before = HostCache(BUDGET), open_files()
    (await cache.get(artifact(tmp_path, "first", 7 * MIB))).release()
    tasks = asyncio.all_tasks()
    waiter = asyncio.create_task(cache.get(artifact(tmp_path, "second", 7 * MIB)))
    asyncio.get_running_loop().call_soon(lambda: [task.cancel() for task in asyncio.all_tasks() - tasks])
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert cache.used_bytes == 0
    assert open_files() <= before
    await cache.close()


async def test_memory_that_somebody_still_reads_is_not_read_into(tmp_path: Path) -> None:
    cache, before = HostCache(BUDGET), open_files()
    ref, other = artifact(tmp_path, "a", 5 * MIB), artifact(tmp_path, "b", 5 * MIB)
    copy = await cache.get(ref)
    kept = os.dup(copy.fd)  # as a worker has it, or a message on its way there
    mapped = mmap.mmap(kept, ref.num_bytes, prot=mmap.PROT_READ)
    os.close(kept)
    copy.release()
    assert read_all((await cache.get(other)).fd, other.num_bytes) == other.weights_path.read_bytes()
    assert not cache.contains("a")
    assert mapped[:] == ref.weights_path.read_bytes()
    mapped.close()
    await cache.close()
    assert open_files() <= before


# --- the spare: memory made ready before it is needed


async def test_what_is_expected_is_read_into_memory_touched_before(tmp_path: Path) -> None:
    ref, other = artifact(tmp_path, "a"), artifact(tmp_path, "b", 2 * MIB)
    cache = HostCache(BUDGET)
    cache.expect(other)
    cache.expect(ref)  # the largest counts
    await cache.wait_ready()
    assert (cache.spare_bytes, cache.used_bytes) == (ref.num_bytes, 0)
    spare = {inode for _, inode in open_files()}
    copy = await cache.get(ref)
    assert os.fstat(copy.fd).st_ino in spare
    assert read_all(copy.fd, ref.num_bytes) == ref.weights_path.read_bytes()
    await cache.wait_ready()
    assert cache.spare_bytes == other.num_bytes  # for the next one
    assert read_all((await cache.get(other)).fd, other.num_bytes) == other.weights_path.read_bytes()
    assert cache.spare_bytes == 0
    await cache.close()


async def test_a_larger_spare_is_cut_to_size_and_a_half_made_one_serves_too(tmp_path: Path) -> None:
    small, large = artifact(tmp_path, "small"), artifact(tmp_path, "large", 6 * MIB)
    cache = HostCache(2 * BUDGET)
    cache.expect(large)
    copy = await cache.get(small)  # at once: most of the spare is not physical yet
    assert read_all(copy.fd, small.num_bytes) == small.weights_path.read_bytes()
    assert os.fstat(copy.fd).st_size == small.num_bytes
    await cache.close()


async def test_the_spare_stays_within_the_budget_and_leaves_before_any_copy(tmp_path: Path) -> None:
    first, second = artifact(tmp_path, "first", 3 * MIB), artifact(tmp_path, "second", 4 * MIB)
    cache = HostCache(BUDGET)
    cache.expect(artifact(tmp_path, "third", 5 * MIB))
    (await cache.get(first)).release()
    assert cache.spare_bytes + cache.used_bytes <= BUDGET
    (await cache.get(second)).release()
    assert cache.contains("first")
    assert cache.contains("second")
    assert (cache.used_bytes, cache.spare_bytes) == (7 * MIB, 0)
    await cache.close()


async def test_the_spare_is_given_back_where_memory_is_short(tmp_path: Path) -> None:
    cache = HostCache(BUDGET)
    before = open_files()
    cache.expect(artifact(tmp_path, "a", 4 * MIB))
    await cache.wait_ready()
    assert cache.allow_spare(False) == 4 * MIB
    assert cache.spare_bytes == 0
    assert open_files() <= before
    cache.forget("a")
    cache.allow_spare(True)
    assert cache.spare_bytes == 0
    await cache.close()


def test_nobody_waits_for_the_thread_that_makes_the_spare() -> None:
    spare, before = HostSpare(), open_files()
    busy = threading.Event()
    spare._thread.submit(busy.wait, 30)  # as where the cores are busy: it stands back
    started_s = time.monotonic()
    spare.make(4 * MIB)
    spare.make(6 * MIB)
    taken = spare.take(5 * MIB)
    assert taken is not None
    spare.make(2 * MIB)
    assert spare.give_back() == 2 * MIB
    assert time.monotonic() - started_s < 10
    assert taken[1] == 0
    assert os.fstat(taken[0]).st_size == 5 * MIB
    os.close(taken[0])
    busy.set()
    spare.close()
    assert open_files() <= before


def test_a_copy_that_cannot_be_begun_leaves_neither_descriptor_nor_mapping(tmp_path: Path) -> None:
    ref, before = artifact(tmp_path, "a", 2 * MIB), open_files()
    with pytest.raises(InsufficientMemoryError):
        HostCopyFile(ref, CopyMemory(new_memfd(MIB), 2 * MIB, 2 * MIB))  # there is less than it should find
    assert open_files() <= before
    assert "mooring-host-copy" not in Path("/proc/self/maps").read_text()


async def test_memory_that_is_wanted_back_is_the_spare_then_copies_that_nobody_holds(tmp_path: Path) -> None:
    cache = HostCache(40 * MIB)
    old, held, new = (artifact(tmp_path, key, 4 * MIB) for key in ("old", "held", "new"))
    for ref in (old, new):
        (await cache.get(ref)).release()
    kept = await cache.get(held)
    assert (cache.budget_bytes, cache.free_bytes) == (40 * MIB, 36 * MIB)
    cache.expect(artifact(tmp_path, "next", 2 * MIB))
    assert cache.give_up(1) == 2 * MIB
    assert cache.spare_bytes == 0
    assert cache.give_up(3 * MIB) == 4 * MIB
    assert [cache.contains(ref.key) for ref in (old, held, new)] == [False, True, True]
    assert cache.give_up(100 * MIB) == 4 * MIB, "and no more than there is"
    assert cache.used_bytes == held.num_bytes
    assert read_all(kept.fd, held.num_bytes) == held.weights_path.read_bytes()
    kept.release()
    await cache.close()
