"""Memory of other processes, with real ones in a cgroup of their own."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.memory_cgroup import MemoryCgroup, memory_cgroup

from memory_manager.arena.host_arena import HostArena
from memory_manager.kv_spec import PAGE_BYTES as PAGE
from memory_manager.watch.devices import DeviceMemory, HostReader
from memory_manager.watch.host_watch import HostWatch
from memory_manager.watch.others_rule import OthersConfig
from memory_manager.watch.others_watch import OthersWatch
from mooring.units import MIB

pytestmark = pytest.mark.integration

JOIN = "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid()))\n"


@contextmanager
def process_in(group: MemoryCgroup, program: str) -> Iterator[subprocess.Popen[str]]:
    """Runs a Python program in the cgroup; it talks over its standard streams, a line at a time."""
    process = subprocess.Popen(
        [sys.executable, "-c", JOIN + program, str(group.procs_file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen[str], line: str = "") -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


ARENA = """
from memory_manager.arena.host_arena import HostArena
PAGE = 2 << 20
arena = HostArena(64 * PAGE, stock_limit_bytes=64 * PAGE)
addresses = arena.reserve(64 * PAGE)
for step in sys.stdin:
    exec(step)
    print("done", flush=True)
"""


def test_pages_that_the_arena_gives_up_leave_by_the_cgroups_own_count() -> None:
    with memory_cgroup(1 << 30) as group, process_in(group, ARENA) as process:

        def after(step: str) -> int:
            tell(process, step)
            assert said(process) == "done"
            return group.used_bytes

        start = after("pass")
        committed = after("arena.commit(addresses, 0, 64)")
        assert abs(committed - start - 64 * PAGE) < 3 * PAGE
        stocked = after("arena.release(addresses, 0, 64)")
        assert abs(stocked - committed) < 3 * PAGE  # kept for the next commit
        again = after("arena.commit(addresses, 0, 64)")
        assert abs(again - committed) < 3 * PAGE  # and used for it: no new memory
        after("arena.release(addresses, 0, 64)")
        halved = after("arena.set_limit(32 * PAGE)")
        assert abs(halved - start - 32 * PAGE) < 3 * PAGE
        gone = after("arena.trim()")
        assert abs(gone - start) < 3 * PAGE


HOG = """
block = bytearray()
for line in sys.stdin:
    block = bytearray(int(line))
    block[::4096] = b"x" * len(block[::4096])
    print("holds", flush=True)
"""


class _Owner:
    """A memory manager that holds nothing but remembers what it was told."""

    def __init__(self, budget_bytes: int, arena: HostArena) -> None:
        self.budget_bytes = budget_bytes
        self.arena = arena
        self.others_bytes = 0
        self.reasons: list[str] = []

    def budget_of(self, device: str) -> tuple[int, int]:
        return self.budget_bytes, 2 * PAGE

    def held_bytes(self, device: str) -> int:
        return self.arena.committed_bytes + self.arena.stock_bytes

    def set_others(self, device: str, num_bytes: int, reason: str) -> None:
        self.others_bytes = num_bytes
        self.reasons.append(reason)
        self.arena.set_limit(self.budget_bytes - num_bytes)


def reader_in(group: MemoryCgroup, tmp_path: Path) -> HostReader:
    """Reads the machine as a process of the cgroup would."""
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text(group.cgroup_line)
    (tmp_path / "meminfo").write_text(Path("/proc/meminfo").read_text())
    return HostReader(set, tmp_path)


async def test_our_budget_makes_way_for_a_real_process_and_comes_back(tmp_path: Path) -> None:
    """A cgroup of 512 MiB, a budget of 384: a process that takes 300 leaves us about 148 less the margin."""
    config = OthersConfig(margin_bytes=32 * MIB, step_bytes=8 * MIB, grow_after_s=2.0)
    arena = HostArena(384 * MIB)
    owner = _Owner(384 * MIB, arena)
    clock = _Clock()
    with memory_cgroup(512 * MIB) as group, process_in(group, HOG) as hog:
        watch = OthersWatch("cpu", reader_in(group, tmp_path), owner, config, clock)
        await watch.look()
        assert owner.others_bytes == 0

        tell(hog, str(300 * MIB))
        assert said(hog) == "holds"
        clock.now_s += 0.5
        await watch.look()  # the very next look
        ours = owner.budget_bytes - owner.others_bytes
        assert 512 * MIB - group.used_bytes - 64 * MIB <= ours <= 512 * MIB - 300 * MIB - 24 * MIB
        assert "there is" in owner.reasons[0]

        tell(hog, "1")
        assert said(hog) == "holds"
        clock.now_s += 0.5
        await watch.look()
        assert owner.others_bytes > 0  # not yet: it may come again
        clock.now_s += 2.5
        await watch.look()
        assert owner.others_bytes == 0
        assert len(owner.reasons) == 2
    arena.close()


async def test_host_copies_go_where_the_host_stays_short(tmp_path: Path) -> None:
    """A cgroup of 512 MiB, of which a process takes 460."""
    config = OthersConfig(margin_bytes=64 * MIB, step_bytes=8 * MIB)
    wanted_bytes: list[int] = []
    with memory_cgroup(512 * MIB) as group, process_in(group, HOG) as hog:
        watch = HostWatch(reader_in(group, tmp_path), wanted_bytes.append, config)
        await watch.look()
        tell(hog, str(460 * MIB))
        assert said(hog) == "holds"
        await watch.look()
        assert wanted_bytes == [], "KV and models first"
        await watch.look()
        assert len(wanted_bytes) == 1
        assert 12 * MIB < wanted_bytes[0] < 64 * MIB
        tell(hog, "1")
        assert said(hog) == "holds"
        await watch.look()
        await watch.look()
        assert len(wanted_bytes) == 1


class _Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


async def test_a_device_that_cannot_be_read_keeps_its_configured_budget_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arena = HostArena(64 * MIB)
    owner = _Owner(64 * MIB, arena)
    reader = HostReader(set, tmp_path / "nothing")
    watch = OthersWatch("cpu", reader, owner, OthersConfig(period_s=0.01))
    with caplog.at_level(logging.INFO):
        for _ in range(5):
            await watch.look()
    assert owner.reasons == []
    assert len([each for each in caplog.records if "cannot be read" in each.message]) == 1
    arena.close()


class _Failing:
    """A device that can be read for a while and then no more."""

    def __init__(self) -> None:
        self.memory: DeviceMemory | None = DeviceMemory(
            "gpu", "cuda", 100 * MIB, 90 * MIB, 10 * MIB, 80 * MIB
        )

    def read(self) -> DeviceMemory | None:
        return self.memory


async def test_a_device_that_stops_being_readable_goes_back_to_its_budget() -> None:
    arena = HostArena(64 * MIB)
    owner, reader, clock = _Owner(64 * MIB, arena), _Failing(), _Clock()
    config = OthersConfig(margin_bytes=4 * MIB, step_bytes=2 * MIB, grow_after_s=1.0)
    watch = OthersWatch("cuda:0", reader, owner, config, clock)
    await watch.look()
    assert owner.others_bytes == 48 * MIB  # 20 are not others', 4 stay free
    reader.memory = None
    for _ in range(3):
        clock.now_s += 1.0
        await watch.look()
    assert owner.others_bytes == 0
    assert "cannot be read" in owner.reasons[-1]
    arena.close()
