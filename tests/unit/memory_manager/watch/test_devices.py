"""Readers of device memory: arithmetic on made-up machines, and the real one where it can be read."""

from __future__ import annotations

import logging
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pynvml
import pytest

from memory_manager.watch.devices import (
    DeviceMemory,
    HostReader,
    NvmlReader,
    default_budget_bytes,
    name_of_gpu,
    ours_of,
)
from mooring.units import GIB, MIB


def _nvidia_gpus() -> int:
    try:
        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:
        return 0


def make_machine(root: Path, cgroup_line: str, files: dict[str, str]) -> HostReader:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text("MemTotal: 8388608 kB\nMemFree: 1024 kB\nMemAvailable: 6291456 kB\n")
    (root / "proc/self/cgroup").write_text(cgroup_line)
    for name, text in files.items():
        path = root / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return HostReader(lambda: set(), root / "proc", root / "cgroup")


def read(reader: HostReader) -> DeviceMemory:
    memory = reader.read()
    assert memory is not None
    return memory


V2 = "0::/kube/pod\n"
V1 = "5:cpu,cpuacct:/\n4:memory:/docker/abc\n0::/\n"


def test_without_a_limit_it_is_the_machine(tmp_path: Path) -> None:
    memory = read(
        make_machine(tmp_path, V2, {"kube/pod/memory.max": "max\n", "kube/pod/memory.current": "5"})
    )
    assert (memory.total_bytes, memory.used_bytes, memory.others_bytes) == (8 * GIB, 2 * GIB, 2 * GIB)


def test_cgroup_v2_limit_and_usage_without_idle_file_pages(tmp_path: Path) -> None:
    files = {
        "kube/pod/memory.max": f"{GIB}\n",
        "kube/pod/memory.current": f"{700 * MIB}\n",
        "kube/pod/memory.stat": f"anon 1\ninactive_file {200 * MIB}\n",
    }
    memory = read(make_machine(tmp_path, V2, files))
    assert (memory.total_bytes, memory.used_bytes) == (GIB, 500 * MIB)


def test_the_lowest_limit_on_the_way_up_counts(tmp_path: Path) -> None:
    files = {
        "kube/pod/memory.max": f"{2 * GIB}\n",
        "kube/pod/memory.current": "10\n",
        "kube/pod/memory.stat": "",
        "kube/memory.max": f"{GIB}\n",
        "kube/memory.current": "30\n",
        "kube/memory.stat": "",
    }
    memory = read(make_machine(tmp_path, V2, files))
    assert (memory.total_bytes, memory.used_bytes) == (GIB, 30)


@pytest.mark.parametrize("folder", ["memory/docker/abc", "memory"])  # from outside, from inside
def test_cgroup_v1(tmp_path: Path, folder: str) -> None:
    files = {
        f"{folder}/memory.limit_in_bytes": f"{3 * GIB}\n",
        f"{folder}/memory.usage_in_bytes": f"{GIB}\n",
        f"{folder}/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB // 2}\n",
    }
    memory = read(make_machine(tmp_path, V1, files))
    assert (memory.total_bytes, memory.used_bytes) == (3 * GIB, GIB // 2)


def test_a_limit_above_the_machine_is_none(tmp_path: Path) -> None:
    files = {
        "memory/memory.limit_in_bytes": f"{(1 << 63) - 4096}\n",
        "memory/memory.usage_in_bytes": "1\n",
        "memory/memory.stat": "",
    }
    assert read(make_machine(tmp_path, V1, files)).total_bytes == 8 * GIB


def test_an_unreadable_machine_is_none_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reader = HostReader(lambda: set(), tmp_path / "proc", tmp_path)
    with caplog.at_level(logging.INFO):
        assert reader.read() is None
        assert reader.read() is None
        assert len(caplog.records) == 1
        assert "host memory cannot be read" in caplog.text
        make_machine(tmp_path, V2, {})
        assert reader.read() is not None
        assert "can be read again" in caplog.text


def test_memfds_of_real_processes_count_once_mapped_or_not() -> None:
    size, noise = 128 * MIB, 32 * MIB
    pids = {os.getpid()}
    reader = HostReader(lambda: pids)
    before = read(reader).ours_bytes
    assert before is not None
    assert before > MIB

    fd = os.memfd_create("test")
    os.ftruncate(fd, size)
    for start in range(0, size, MIB):
        os.pwrite(fd, b"x" * MIB, start)
    unmapped = read(reader).ours_bytes
    mapping = mmap.mmap(fd, size, mmap.MAP_SHARED)
    assert sum(mapping[::4096]) == size // 4096 * ord("x")  # touches every page
    mapped = read(reader).ours_bytes
    child = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"],
        pass_fds=[fd],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert child.stdout is not None
        child.stdout.readline()
        pids.add(child.pid)
        shared = read(reader).ours_bytes
    finally:
        child.communicate(b"\n", timeout=30)
    mapping.close()
    os.close(fd)
    assert unmapped is not None
    assert mapped is not None
    assert shared is not None
    assert size <= unmapped - before < size + noise
    assert abs(mapped - unmapped) < noise
    assert 0 < shared - mapped < size  # the child's own, and not the memfd again
    assert abs(read(reader).ours_bytes - before) < noise  # type: ignore[operator]


def test_a_process_that_is_gone_counts_nothing() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait(timeout=30)
    memory = read(HostReader(lambda: {child.pid}))
    assert memory.ours_bytes == 0
    assert 0 < memory.used_bytes < memory.total_bytes


def test_ours_on_a_gpu() -> None:
    assert ours_of([], {1}) == 0
    assert ours_of([(1, 5), (2, 7), (9, 11)], {1, 2, 3}) == 12
    assert ours_of([(1, 5), (2, None)], {1, 2}) is None  # the driver does not say
    assert ours_of([(1, 5), (9, None)], {1}) == 5  # what others use need not be known
    assert ours_of([(9, 5)], set()) == 0
    assert ours_of([(9, 5)], {1}) is None  # another pid namespace, perhaps


@pytest.mark.parametrize(
    ("index", "visible", "name"),
    [
        (0, None, 0),
        (1, None, 1),
        (0, "3", 3),
        (1, "3, 1", 1),
        (0, "GPU-5b1c,2", "GPU-5b1c"),
        (1, "3", 1),  # CUDA says that there is none
    ],
)
def test_nvml_is_asked_for_the_gpu_that_cuda_sees(index: int, visible: str | None, name: int | str) -> None:
    assert name_of_gpu(index, visible) == name


@pytest.mark.skipif(_nvidia_gpus() > 0, reason="this machine has an NVIDIA GPU")
def test_without_nvml_the_reader_says_so_once_and_gives_none(caplog: pytest.LogCaptureFixture) -> None:
    reader = NvmlReader(0, lambda: {os.getpid()})
    with caplog.at_level(logging.WARNING):
        assert reader.read() is None
        assert reader.read() is None
    assert len(caplog.records) == 1
    assert "GPU 0 cannot be read" in caplog.text
    assert "NVML" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(_nvidia_gpus() == 0, reason="needs an NVIDIA GPU")
def test_a_real_gpu_adds_up() -> None:
    memory = NvmlReader(0, lambda: {os.getpid()}).read()
    assert memory is not None
    assert memory.kind == "cuda"
    assert memory.name
    assert 0 <= memory.used_bytes <= memory.total_bytes
    if memory.ours_bytes is not None:
        assert memory.ours_bytes + (memory.others_bytes or 0) >= memory.used_bytes


def test_default_budget() -> None:
    memory = DeviceMemory("gpu", "cuda", 24 * GIB, 10 * GIB, 6 * GIB, 4 * GIB)
    assert default_budget_bytes(memory, GIB) == 19 * GIB
    assert default_budget_bytes(memory, GIB + 1) == 19 * GIB - 2 * MIB  # whole pages
    assert default_budget_bytes(memory, 30 * GIB) == 0
    unknown = DeviceMemory("gpu", "cuda", 24 * GIB, 10 * GIB, None, None)
    assert default_budget_bytes(unknown, GIB) == 13 * GIB


def test_what_is_available_is_the_least_that_any_level_has_left(tmp_path: Path) -> None:
    files = {
        "kube/pod/memory.max": f"{2 * GIB}\n",
        "kube/pod/memory.current": f"{GIB}\n",
        "kube/pod/memory.stat": "",
        "kube/memory.max": f"{20 * GIB}\n",  # above the machine's own, and nearly full
        "kube/memory.current": f"{20 * GIB - 5}\n",
        "kube/memory.stat": "",
    }
    memory = read(make_machine(tmp_path, V2, files))
    assert (memory.total_bytes, memory.free_bytes, memory.stalled_share) == (2 * GIB, 5, None)
    plain = DeviceMemory("gpu", "cuda", 10, 7, None, None)
    assert plain.free_bytes == 3


@pytest.mark.parametrize("path", ["cgroup/kube/pod/memory.pressure", "proc/pressure/memory"])
def test_how_long_processes_stall_for_memory_is_read_from_the_nearest_who_tells(
    tmp_path: Path, path: str
) -> None:
    reader = make_machine(tmp_path, V2, {})
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        "some avg10=12.50 avg60=0.00 avg300=0.00 total=1\nfull avg10=3.00 avg60=0 avg300=0 total=1\n"
    )
    assert read(reader).stalled_share == pytest.approx(0.125)
    file.write_text("nonsense")
    assert reader.read() is None
