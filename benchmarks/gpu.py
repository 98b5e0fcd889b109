"""What moving models and KV costs on an NVIDIA GPU, against its link and by the driver's own figures.

``mooring bench gpu --out DIR``. ``benchmarks.residency`` measures the rest, which needs no GPU. With ``--device cpu``
all of it is done in host memory, which shows that it runs and nothing else.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from benchmarks.bare_engine import BareEngine, PackedModel
from benchmarks.kv_elasticity import measure_handover, pack_random
from benchmarks.memory_rates import CopyCeiling
from benchmarks.random_models import shape
from benchmarks.report import Report
from benchmarks.transitions import REPLICA, resident
from engines.torch.engine_config import TorchEngineConfig
from memory_manager.arena import Arena
from memory_manager.arenas import arena_on
from memory_manager.devices import NvmlReader
from memory_manager.kv_spec import PAGE_BYTES
from mooring.errors import ConfigurationError, MooringError
from mooring.units import GIB, MIB, format_bytes

__all__ = ["GpuLoad", "main"]


@dataclass(frozen=True, slots=True)
class GpuLoad:
    """How much of everything.

    Attributes:
        shape_name: of the model that wakes; see ``random_models.shape``.
        wakes: that are timed.
        handover_bytes: of KV that live sequences hold before it is handed over, at least.
    """

    shape_name: str = "Qwen2.5-0.5B"
    wakes: int = 15
    handover_bytes: int = 8 * GIB

    @classmethod
    def quick(cls) -> GpuLoad:
        """A tiny model, twice: whether it works, not how well."""
        return cls("tiny", 2, 32 * MIB)


@dataclass(slots=True)
class _Wakes:
    """Rates in bytes per second, and bytes that are used on the device by the driver's figure.

    Attributes:
        link_rates: of copies from one pinned buffer into device memory.
        wake_rates: weights over the seconds of a wake.
        resident_bytes, asleep_bytes: used while the model is either, less what is used when it is unloaded.
    """

    link_rates: list[float] = field(default_factory=list)
    wake_rates: list[float] = field(default_factory=list)
    resident_bytes: int = 0
    asleep_bytes: int = 0


def main(out: Path, device: str, load: GpuLoad) -> dict[str, float]:
    """Measures everything and writes the report; returns the figures.

    Raises:
        ConfigurationError: ``device`` is a GPU that is not there.
    """
    torch_device = torch.device(device)
    if torch_device.type == "cuda" and (torch_device.index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(f"there is no GPU {device} on this machine", param="device")
    report = Report(out, "Moving models and KV on a GPU")
    report.text(_device_name(torch_device))
    figures: dict[str, float] = {}
    for part in (_wakes, _handover):
        with tempfile.TemporaryDirectory(prefix="mooring-bench-") as scratch:
            figures |= part(Path(scratch), torch_device, load, report)
    for name, value in figures.items():
        report.figure(name, value)
    report.write()
    return figures


def _wakes(scratch: Path, device: torch.device, load: GpuLoad, report: Report) -> dict[str, float]:
    model = pack_random(scratch, "model", shape(load.shape_name), "bf16", 0)
    found = asyncio.run(_measure_wakes(model, device, load.wakes))
    link = statistics.median(found.link_rates)
    report.text(
        f"## Wakes\n\nOne model of {load.shape_name}'s shape in bf16, {format_bytes(model.num_bytes)}. "
        "`wake_share_of_link`: the rate of a wake over that of copies of as many bytes from one pinned buffer, in "
        "turn. `asleep_bytes`: used on the device, by the driver's figure, while the model sleeps, beyond what is "
        "used when it is unloaded; its pages have been given back to the driver. `resident_over_weights`: the same "
        "while it is resident, over its weights."
    )
    report.table(
        ["GB/s", *(str(number) for number in range(1, load.wakes + 1))],
        [
            ["link", *(rate / 1e9 for rate in found.link_rates)],
            ["wake", *(rate / 1e9 for rate in found.wake_rates)],
        ],
    )
    report.data("wakes", asdict(found))
    return {
        "wake_share_of_link": statistics.median(found.wake_rates) / link,
        "link_gb_per_s": link / 1e9,
        "asleep_bytes": found.asleep_bytes,
        "resident_over_weights": found.resident_bytes / model.weights_bytes,
    }


async def _measure_wakes(model: PackedModel, device: torch.device, repeats: int) -> _Wakes:
    found = _Wakes()
    measure_link = _link(device, model.num_bytes)
    capacity_bytes = model.weights_bytes + 16 * PAGE_BYTES
    arena = arena_on(str(device), capacity_bytes, capacity_bytes)
    engine = BareEngine(arena, TorchEngineConfig(device=str(device), cpu_wake="copy"))
    engine.lease(8 * PAGE_BYTES)
    try:
        async with resident(engine, model):
            for number in range(repeats + 1):
                link_rate = measure_link()
                engine.engine.sleep(REPLICA)
                started_s = time.perf_counter()
                engine.engine.wake(REPLICA, model.weights_bytes)
                wake_rate = model.num_bytes / (time.perf_counter() - started_s)
                if number:  # the first one pins the host copy
                    found.link_rates.append(link_rate)
                    found.wake_rates.append(wake_rate)
            resident_bytes = _used_bytes(device, arena)
            engine.engine.sleep(REPLICA)
            asleep_bytes = _used_bytes(device, arena)
        unloaded_bytes = _used_bytes(device, arena)
    finally:
        engine.close()
    found.resident_bytes = resident_bytes - unloaded_bytes
    found.asleep_bytes = max(0, asleep_bytes - unloaded_bytes)
    return found


def _link(device: torch.device, num_bytes: int) -> Callable[[], float]:
    """Measures bytes per second from host memory to the device, as quick as they come."""
    if device.type != "cuda":
        return CopyCeiling(num_bytes).measure
    source = torch.ones(num_bytes, dtype=torch.uint8).pin_memory()
    target = torch.empty(num_bytes, dtype=torch.uint8, device=device)

    def measure() -> float:
        torch.cuda.synchronize(device)
        started_s = time.perf_counter()
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize(device)
        return num_bytes / (time.perf_counter() - started_s)

    return measure


def _used_bytes(device: torch.device, arena: Arena) -> int:
    """On the device, by the driver's figure, without the pages that the arena only keeps in stock. Host memory holds
    much else of this process: there, by the arena's."""
    arena.trim()
    if device.type != "cuda":
        return arena.committed_bytes
    torch.cuda.synchronize(device)
    memory = NvmlReader(device.index or 0, lambda: {os.getpid()}).read()
    if memory is None:
        raise MooringError("NVML does not say what the GPU's memory is used for")
    return memory.used_bytes


def _handover(scratch: Path, device: torch.device, load: GpuLoad, report: Report) -> dict[str, float]:
    found = measure_handover(scratch, load.handover_bytes, device=str(device))
    report.text(
        f"## Handing KV over\n\nAs `mooring bench residency` does: {format_bytes(found.live_before_bytes)} of "
        f"{format_bytes(found.pool_bytes)} go from the running sequences of a model that is put to sleep to those of "
        f"another. Letting go took {1e3 * found.let_go_s:.2f} ms."
    )
    report.data("handover", asdict(found))
    return {"kv_handover_ms": 1e3 * found.seconds, "kv_live_before_bytes": found.live_before_bytes}


def _device_name(device: torch.device) -> str:
    if device.type != "cuda":
        return "In host memory: no GPU was measured."
    return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}."
