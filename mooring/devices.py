"""Which device the settings mean, how it is read, and how much of it is ours by default."""

from __future__ import annotations

import logging

from memory_manager.config import DeviceBudget
from memory_manager.devices import DeviceReader, HostReader, NvmlReader, Pids, default_budget_bytes
from mooring.config import Settings
from mooring.errors import ConfigurationError
from mooring.units import GIB, format_bytes

__all__ = ["device_budget", "device_reader", "host_cache_budget_bytes", "resolve_device"]

logger = logging.getLogger(__name__)

_GPU_RESERVE_BYTES = 1 * GIB  # a CUDA context, workspace of the kernels


def resolve_device(settings: Settings) -> str:
    """``"cpu"`` or ``"cuda:N"``: what the settings name, or the first GPU, or else the CPU."""
    if settings.device == "cuda":
        return "cuda:0"
    if settings.device != "auto":
        return settings.device
    return "cuda:0" if _has_gpu() else "cpu"


def device_reader(device: str, pids: Pids) -> DeviceReader:
    """Reads the memory of a device; ``pids`` tells which processes are ours."""
    return HostReader(pids) if device == "cpu" else NvmlReader(int(device.removeprefix("cuda:")), pids)


def device_budget(settings: Settings, device: str, reader: DeviceReader) -> DeviceBudget:
    """What we may use of the device.

    Raises:
        ConfigurationError: no budget is set and the device cannot be read, or nothing of it is left.
    """
    on_gpu = device != "cpu"
    reserve_bytes = settings.reserve_bytes
    if reserve_bytes is None:
        reserve_bytes = _GPU_RESERVE_BYTES if on_gpu else 0
    if settings.memory_budget is not None:
        return DeviceBudget(device, settings.memory_budget, reserve_bytes)
    memory = reader.read()
    if memory is None:
        raise ConfigurationError(f"{device} cannot be read: give its memory with --memory-budget")
    free_bytes = default_budget_bytes(memory, 0)
    # The host's memory is also everybody else's, and warm copies want some of it.
    budget_bytes = free_bytes if on_gpu else free_bytes // 2
    logger.info("memory budget of %s (%s): %s", device, memory.name, format_bytes(budget_bytes))
    return DeviceBudget(device, budget_bytes, reserve_bytes)


def host_cache_budget_bytes(settings: Settings) -> int:
    """Host memory for warm copies of weights: as set, or a quarter of the machine's."""
    if settings.host_cache_budget is not None:
        return settings.host_cache_budget
    memory = HostReader(set).read()
    if memory is None:
        raise ConfigurationError("this machine's memory cannot be read: give --host-cache-budget")
    return memory.total_bytes // 4


def _has_gpu() -> bool:
    import pynvml

    try:
        pynvml.nvmlInit()
        return bool(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:
        return False  # no driver: a machine without an NVIDIA GPU
