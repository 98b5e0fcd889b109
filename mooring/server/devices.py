"""The devices that the settings mean, their readers, and their budgets by default."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

from memory_manager.config import DeviceBudget
from memory_manager.fleet.others_share import OthersShare
from memory_manager.watch.devices import DeviceReader, HostReader, NvmlReader, Pids, default_budget_bytes
from memory_manager.watch.host_watch import HostWatch
from memory_manager.watch.others_watch import OthersWatch
from mooring.config import DeviceEntry, Settings
from mooring.errors import ConfigurationError
from mooring.units import GIB, format_bytes

__all__ = [
    "DEFAULT_GPU_RESERVE_BYTES",
    "compute_capability",
    "default_host_cache_bytes",
    "device_budgets",
    "device_names",
    "device_reader",
    "device_readers",
    "host_cache_budget_bytes",
    "is_cpu",
    "watch_others",
]

logger = logging.getLogger(__name__)

DEFAULT_GPU_RESERVE_BYTES = 1 * GIB  # a CUDA context, workspace of the kernels


def is_cpu(device: str) -> bool:
    """Whether a device is the host's CPU, or one of several devices that the CPU is divided into."""
    return device.partition(":")[0] == "cpu"


def device_reader(device: str, pids: Pids) -> DeviceReader:
    """Makes the reader of a device's memory; ``pids`` tells which processes are ours."""
    return HostReader(pids) if is_cpu(device) else _nvml_reader(device, pids)


def device_readers(settings: Settings, pids: Pids) -> dict[str, DeviceReader]:
    """Readers of the devices' memory, by the devices' names."""
    return {entry.name: device_reader(entry.name, pids) for entry in _entries(settings)}


def device_names(settings: Settings) -> list[str]:
    """Names of the devices, in the settings' order."""
    return [entry.name for entry in _entries(settings)]


def compute_capability(device: str) -> tuple[int, int] | None:
    """The compute capability of a GPU; None if it cannot be read."""
    return _nvml_reader(device, set).compute_capability()


def device_budgets(settings: Settings, unset_bytes: int | None = None) -> list[DeviceBudget]:
    """Budgets of the devices, in the settings' order. Ask before any worker runs.

    Args:
        unset_bytes: memory for weights and KV of the one device, if the settings name no budget; by default as
            much as the device has to give.

    Raises:
        ConfigurationError: no budget is set and the device cannot be read, or no memory of it is left.
    """
    if settings.devices:
        unset_bytes = None
    return [_budget(entry, unset_bytes) for entry in _entries(settings)]


def _entries(settings: Settings) -> tuple[DeviceEntry, ...]:
    if settings.devices:
        return settings.devices
    device = settings.device
    if device == "auto":
        device = "cuda:0" if _has_gpu() else "cpu"
    return (
        DeviceEntry(
            name="cuda:0" if device == "cuda" else device,
            memory_budget=settings.memory_budget,
            reserve_bytes=settings.reserve_bytes,
        ),
    )


def _budget(entry: DeviceEntry, unset_bytes: int | None) -> DeviceBudget:
    on_gpu = not is_cpu(entry.name)
    reserve_bytes = entry.reserve_bytes
    if reserve_bytes is None:
        reserve_bytes = DEFAULT_GPU_RESERVE_BYTES if on_gpu else 0
    if entry.memory_budget is not None:
        return DeviceBudget(entry.name, entry.memory_budget, reserve_bytes)
    if unset_bytes is not None:
        return DeviceBudget(entry.name, unset_bytes + reserve_bytes, reserve_bytes)
    memory = device_reader(entry.name, lambda: {os.getpid()}).read()
    if memory is None:
        raise ConfigurationError(f"{entry.name} cannot be read: give its memory with --memory-budget")
    free_bytes = default_budget_bytes(memory, 0)
    # Other processes use the host's memory too, and warm copies want some of it.
    budget_bytes = free_bytes if on_gpu else free_bytes // 2
    logger.info("memory budget of %s (%s): %s", entry.name, memory.name, format_bytes(budget_bytes))
    return DeviceBudget(entry.name, budget_bytes, reserve_bytes)


def host_cache_budget_bytes(settings: Settings, devices: Sequence[DeviceBudget]) -> int:
    """Bytes of host memory for warm copies of weights: as set, or as these devices and the machine suggest.

    Raises:
        ConfigurationError: it is not set and the machine's memory cannot be read.
    """
    if settings.host_cache_budget is not None:
        return settings.host_cache_budget
    memory = HostReader(set).read()
    if memory is None:
        raise ConfigurationError("this machine's memory cannot be read: give --host-cache-budget")
    return default_host_cache_bytes(devices, memory.total_bytes)


def default_host_cache_bytes(devices: Sequence[DeviceBudget], total_bytes: int) -> int:
    """Bytes of a machine with ``total_bytes`` of memory that hold all that the devices can, and one model as large as
    a device beside it; at most half of what CPU devices leave of the memory, at least a quarter of all."""
    budgets = [each.budget_bytes for each in devices]
    on_cpu_bytes = sum(each.budget_bytes for each in devices if is_cpu(each.name))
    most_bytes = (total_bytes - on_cpu_bytes) // 2
    return max(total_bytes // 4, min(sum(budgets) + max(budgets), most_bytes))


def watch_others(
    settings: Settings, readers: Mapping[str, DeviceReader], owner: OthersShare
) -> list[asyncio.Task[None]]:
    """Begins to watch every device, and the host, for other processes' memory; the tasks run until they are
    cancelled."""
    others = settings.others
    if not others.watch:
        return []
    num_on_cpu = sum(map(is_cpu, readers))
    host = next((reader for device, reader in readers.items() if is_cpu(device)), HostReader(set))
    watches: list[OthersWatch | HostWatch] = [HostWatch(host, owner.give_up_copies, others)]
    watches += [
        OthersWatch(device, reader, owner, replace(others, num_sharing=num_on_cpu if is_cpu(device) else 1))
        for device, reader in readers.items()
    ]
    tasks = [asyncio.create_task(watch.run(), name="watch-others") for watch in watches]
    for task in tasks:
        task.add_done_callback(_tell_end)
    return tasks


def _tell_end(task: asyncio.Task[None]) -> None:
    """Logs the error that ended a watch: only a bug of ours does that, and it must not pass unseen."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("other processes' memory is no longer watched", exc_info=error)


def _nvml_reader(device: str, pids: Pids) -> NvmlReader:
    return NvmlReader(int(device.removeprefix("cuda:")), pids)


def _has_gpu() -> bool:
    import pynvml

    try:
        pynvml.nvmlInit()
        return bool(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:
        return False  # no driver: a machine without an NVIDIA GPU
