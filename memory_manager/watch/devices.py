"""Memory of a device by its own account: total, used, ours, and that of other processes.

``NvmlReader`` asks the NVIDIA driver, ``HostReader`` the kernel and the cgroup. Both read the real machine
and know nothing of the ledger, so the two can be held against each other.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from memory_manager.kv_spec import PAGE_BYTES

__all__ = [
    "DeviceMemory",
    "DeviceReader",
    "HostReader",
    "NvmlReader",
    "Pids",
    "default_budget_bytes",
    "name_of_gpu",
]

log = logging.getLogger(__name__)

Pids = Callable[[], set[int]]
"""Returns the ids of the processes that are ours right now."""


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Memory of one device at one moment.

    Attributes:
        name: the vendor's name for the device.
        kind: ``"cuda"`` or ``"cpu"``.
        total_bytes: all memory; on the CPU, the cgroup's limit if that is lower than the machine's memory.
        used_bytes: memory of all processes; memory that the system would give up at once is not counted.
        ours_bytes: memory of our processes; None if the device does not tell.
        others_bytes: the rest of ``used_bytes``; None if ``ours_bytes`` is.
        available_bytes: memory that could be had at once: the least that the machine and every cgroup above
            us has left; None if it is simply the memory that is not used.
        stalled_share: share of the last ten seconds in which some process waited for memory (the kernel's
            pressure stall information); None if unknown.
    """

    name: str
    kind: Literal["cuda", "cpu"]
    total_bytes: int
    used_bytes: int
    ours_bytes: int | None
    others_bytes: int | None
    available_bytes: int | None = None
    stalled_share: float | None = None

    @property
    def free_bytes(self) -> int:
        """Bytes that could be had at once."""
        if self.available_bytes is not None:
            return self.available_bytes
        return max(0, self.total_bytes - self.used_bytes)


class DeviceReader(Protocol):
    """Reads one device. A reading is cheap enough for every second; it blocks, so call it off the event
    loop."""

    def read(self) -> DeviceMemory | None:
        """The figures now, or None if the device cannot be read; the log then has the reason, once."""
        ...

    def busy_share(self) -> float | None:
        """Share of the last moment in which the device computed, for whomever; None if it does not tell."""
        ...


def default_budget_bytes(memory: DeviceMemory, reserve_bytes: int) -> int:
    """The budget if the operator names none: all that other processes leave, less the reserve.

    If the device does not tell what is ours, all used memory counts as that of other processes, which is
    right before our first worker starts. Whole pages; 0 if nothing is left.
    """
    others_bytes = memory.used_bytes if memory.others_bytes is None else memory.others_bytes
    return max(0, memory.total_bytes - others_bytes - reserve_bytes) // PAGE_BYTES * PAGE_BYTES


class _Complaint:
    """Logs why a device cannot be read: once when that begins and once when it ends, not at every reading."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._reason: str | None = None

    def raise_about(self, reason: str) -> None:
        if reason != self._reason:
            log.warning("%s cannot be read, so its memory is not watched: %s", self._device, reason)
        self._reason = reason

    def settle(self) -> None:
        if self._reason is not None:
            log.info("%s can be read again", self._device)
        self._reason = None


class NvmlReader:
    """One NVIDIA GPU through NVML.

    Args:
        index: index of the GPU among those that CUDA may see, in the order of the PCI bus.
        pids: our process ids. They must be as the driver sees them: in a container with process ids of its
            own the driver may see different ones, and then nothing can be said to be ours.
    """

    def __init__(self, index: int, pids: Pids) -> None:
        self._name = name_of_gpu(index, os.environ.get("CUDA_VISIBLE_DEVICES"))
        self._pids = pids
        self._complaint = _Complaint(f"GPU {index}")
        self._initialized = False

    def read(self) -> DeviceMemory | None:
        try:
            import pynvml
        except ImportError:
            self._complaint.raise_about("the package nvidia-ml-py is not installed")
            return None
        try:
            if not self._initialized:
                pynvml.nvmlInit()
                self._initialized = True
            handle = self._handle()
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
            name = str(pynvml.nvmlDeviceGetName(handle))
        except pynvml.NVMLError as error:
            self._initialized = False  # a driver that was reloaded wants a new beginning
            self._complaint.raise_about(f"NVML says: {error}")
            return None
        self._complaint.settle()
        used_bytes = int(memory.used)
        ours_bytes = ours_of([(process.pid, process.usedGpuMemory) for process in processes], self._pids())
        others_bytes = None if ours_bytes is None else max(0, used_bytes - ours_bytes)
        return DeviceMemory(name, "cuda", int(memory.total), used_bytes, ours_bytes, others_bytes)

    def busy_share(self) -> float | None:
        try:
            import pynvml
        except ImportError:
            return None
        try:
            pynvml.nvmlInit()
            return float(pynvml.nvmlDeviceGetUtilizationRates(self._handle()).gpu) / 100
        except pynvml.NVMLError:  # no driver, or a part of a GPU, which has no figure of its own
            return None

    def compute_capability(self) -> tuple[int, int] | None:
        """The GPU's compute capability, as major and minor number; None if it cannot be read."""
        try:
            import pynvml
        except ImportError:
            return None
        try:
            pynvml.nvmlInit()
            major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(self._handle())
        except pynvml.NVMLError:
            return None
        return int(major), int(minor)

    def _handle(self) -> Any:
        import pynvml

        if isinstance(self._name, int):
            return pynvml.nvmlDeviceGetHandleByIndex(self._name)
        return pynvml.nvmlDeviceGetHandleByUUID(self._name)


def name_of_gpu(index: int, visible: str | None) -> int | str:
    """The number or UUID by which NVML, which hides no GPU, knows a GPU.

    Args:
        index: index of the GPU among those that CUDA may see.
        visible: ``CUDA_VISIBLE_DEVICES``; None if it is not set.
    """
    names = visible.split(",") if visible is not None else []
    name = names[index].strip() if index < len(names) else str(index)
    return int(name) if name.isdecimal() else name


def ours_of(processes: list[tuple[int, int | None]], pids: set[int]) -> int | None:
    """Bytes of our processes on a GPU, from the driver's (pid, bytes) pairs.

    None if that cannot be told: the driver gives no bytes for one of our processes (MIG, WDDM), or shows
    processes and none of our ids although we have some (another pid namespace).
    """
    ours = [num_bytes for pid, num_bytes in processes if pid in pids]
    if pids and processes and not ours:
        return None
    known = [num_bytes for num_bytes in ours if num_bytes is not None]
    return sum(known) if len(known) == len(ours) else None


class HostReader:
    """The memory of this machine, or of our cgroup (v2 or v1) if its limit is lower.

    Our memory is the anonymous memory of our processes and every memfd that they have open, mapped or not,
    each memfd counted once however many processes map it: arena, stock and host copies alike. File pages are
    the system's, which takes them back when it wants, and count as nobody's.

    Args:
        pids: ids of our processes; a process that is gone counts nothing.
        proc: where the proc file system is mounted.
        cgroup: where the cgroup file system is mounted.
    """

    def __init__(self, pids: Pids, proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> None:
        self._pids = pids
        self._proc = proc
        self._cgroup = cgroup
        self._complaint = _Complaint("host memory")

    def read(self) -> DeviceMemory | None:
        try:
            machine = _fields(self._proc / "meminfo")
            total_bytes = machine["MemTotal"]
            available_bytes = machine["MemAvailable"]
            used_bytes = total_bytes - available_bytes
            for limit_bytes, usage_bytes in self._cgroup_limits():
                available_bytes = min(available_bytes, max(0, limit_bytes - usage_bytes))
                if limit_bytes < total_bytes:
                    total_bytes, used_bytes = limit_bytes, usage_bytes
            ours_bytes = self._ours()
            stalled_share = self._stalled_share()
        except (OSError, KeyError, ValueError) as error:
            self._complaint.raise_about(f"{error!r}")
            return None
        self._complaint.settle()
        others_bytes = max(0, used_bytes - ours_bytes)
        return DeviceMemory(
            "host memory",
            "cpu",
            total_bytes,
            used_bytes,
            ours_bytes,
            others_bytes,
            available_bytes,
            stalled_share,
        )

    def busy_share(self) -> float | None:
        return None  # what other programs compute is not ours to tell of; workers tell of their steps

    def _stalled_share(self) -> float | None:
        """Share of the last ten seconds that processes waited for memory: of our own cgroup if it tells (v2),
        else of the machine. The files read ``some avg10=1.23 avg60=...``."""
        for path in (self._own_pressure(), self._proc / "pressure" / "memory"):
            try:
                text = path.read_text()
            except OSError:  # a kernel without this file, or a cgroup that does not tell
                continue
            average = dict(field.split("=") for field in text.split("\n")[0].split()[1:])
            return float(average["avg10"]) / 100
        return None

    def _own_pressure(self) -> Path:
        for line in (self._proc / "self" / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                return self._cgroup / path.lstrip("/") / "memory.pressure"
        return self._cgroup / "memory.pressure"

    def _ours(self) -> int:
        anonymous_bytes = 0
        memfds: dict[tuple[int, int], int] = {}
        for pid in self._pids():
            process = self._proc / str(pid)
            try:
                # A process that exits while it is read counts nothing, so it is read before it is added.
                private_bytes = _fields(process / "status").get("RssAnon", 0)
                held = dict(_memfds(process / "fd"))
            except (FileNotFoundError, ProcessLookupError):
                continue
            anonymous_bytes += private_bytes
            memfds |= held
        return anonymous_bytes + sum(memfds.values())

    def _cgroup_limits(self) -> Iterator[tuple[int, int]]:
        """Yields limit and usage, in bytes, of our memory cgroup and of each one above it that has a
        limit."""
        for line in (self._proc / "self" / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                yield from _limits(self._cgroup, path, "memory.max", "memory.current", "inactive_file")
            elif "memory" in controllers.split(","):
                names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
                yield from _limits(self._cgroup / "memory", path, *names)


def _limits(mount: Path, path: str, limit: str, usage: str, idle: str) -> Iterator[tuple[int, int]]:
    """Yields limit and usage, in bytes, of a cgroup and of those above it up to the mount. Levels that are
    not there (a container sees its own cgroup as the mount) and levels without a limit are passed over."""
    own = mount / path.lstrip("/")
    levels = [own, *own.parents]
    for level in levels[: levels.index(mount) + 1]:
        try:
            limit_text = (level / limit).read_text().strip()
            usage_bytes = int((level / usage).read_text())
        except FileNotFoundError:
            continue
        if limit_text != "max":
            yield int(limit_text), max(0, usage_bytes - _fields(level / "memory.stat").get(idle, 0))


def _fields(path: Path) -> dict[str, int]:
    """Lines of ``name: 12 kB`` or ``name 12`` as bytes; lines that are not numbers are left out."""
    fields = {}
    for line in path.read_text().splitlines():
        name, *values = line.replace(":", " ").split()
        if values and values[0].isdigit():
            fields[name] = int(values[0]) * (1024 if values[1:] == ["kB"] else 1)
    return fields


def _memfds(folder: Path) -> Iterator[tuple[tuple[int, int], int]]:
    """The memfds among a process's descriptors: (device, inode) of each and the bytes behind it."""
    for descriptor in os.scandir(folder):
        try:
            if os.readlink(descriptor.path).startswith("/memfd:"):
                status = os.stat(descriptor.path)
                yield (status.st_dev, status.st_ino), status.st_blocks * 512
        except FileNotFoundError:  # closed since it was listed
            continue
