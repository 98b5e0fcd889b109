"""The cost of moving models and KV on an NVIDIA GPU, against its link and by the driver's own figures.

``mooring bench gpu --out DIR``. ``benchmarks.residency`` measures the rest, which needs no GPU. With
``--device cpu`` everything is done in host memory, which shows that the benchmark runs and nothing else.
"""

from __future__ import annotations

import asyncio
import gc
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
from engines.config import TorchEngineConfig
from memory_manager.arena.factory import arena_on
from memory_manager.arena.protocol import Arena
from memory_manager.kv_spec import PAGE_BYTES, kv_bytes_for_tokens
from mooring.errors import ConfigurationError, MooringError
from mooring.units import GIB, MIB, format_bytes

__all__ = ["GpuLoad", "main"]

_NUM_TOKENS = 32  # of a prompt and of its answer


@dataclass(frozen=True, slots=True)
class GpuLoad:
    """Amounts of everything that is measured.

    Attributes:
        shape_name: shape of the model that wakes; see ``random_models.shape``.
        wakes: number of wakes that are timed.
        handover_bytes: least bytes of KV that live sequences hold before it is handed over.
    """

    shape_name: str = "Qwen2.5-0.5B"
    wakes: int = 15
    handover_bytes: int = 8 * GIB

    @classmethod
    def quick(cls) -> GpuLoad:
        """A tiny model, twice: shows whether the benchmark works, not how quick anything is."""
        return cls("tiny", 2, 32 * MIB)


@dataclass(slots=True)
class _Wakes:
    """Rates in bytes per second, and bytes that are used on the device, by the driver's figure.

    Attributes:
        link_rates: rates of copies from one pinned buffer into device memory.
        wake_rates: weights over the seconds of a wake whose pages are in the arena's stock, as a worker keeps
            them.
        fresh_wake_rates: weights over the seconds of a wake whose pages have been given back to the driver
            and must be made.
        unloaded_bytes: bytes used before the model is loaded; no pages are in stock.
        resident_bytes: bytes used while it is resident.
        asleep_bytes: bytes used while it sleeps.
    """

    link_rates: list[float] = field(default_factory=list)
    wake_rates: list[float] = field(default_factory=list)
    fresh_wake_rates: list[float] = field(default_factory=list)
    unloaded_bytes: int = 0
    resident_bytes: int = 0
    asleep_bytes: int = 0


def main(out: Path, device: str, load: GpuLoad) -> dict[str, float]:
    """Measures everything and writes the report; returns the figures.

    Raises:
        ConfigurationError: ``device`` is a GPU that is not there.
    """
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise ConfigurationError(f"cuda:0 or cpu can be measured, not {device!r}", param="device")
    torch_device = torch.device(device)
    if torch_device.type == "cuda":
        _check_gpu(torch_device, load)
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


def _check_gpu(device: torch.device, load: GpuLoad) -> None:
    """Checks the GPU before the minutes of measuring rather than after them."""
    if torch.version.cuda is None:
        raise ConfigurationError("this torch was built for the CPU alone", param="device")
    if (device.index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(f"there is no GPU {device} on this machine", param="device")
    free_bytes, _ = torch.cuda.mem_get_info(device)
    needed_bytes = load.handover_bytes * 5 // 4
    if free_bytes < needed_bytes:
        raise ConfigurationError(
            f"{format_bytes(needed_bytes)} of {device} are needed and {format_bytes(free_bytes)} are free",
            param="device",
        )


def _wakes(scratch: Path, device: torch.device, load: GpuLoad, report: Report) -> dict[str, float]:
    model = pack_random(scratch, "model", shape(load.shape_name), "bf16", 0)
    found = asyncio.run(_measure_wakes(model, device, load.wakes))
    link = statistics.median(found.link_rates)
    report.text(
        f"## Wakes\n\nOne model of {load.shape_name}'s shape in bf16, {format_bytes(model.num_bytes)}. "
        "`wake_share_of_link`: the rate of a wake over that of copies of as many bytes from one pinned buffer, in "
        "turn. Its pages stayed with the arena, as they do in a worker until memory is short. "
        "`fresh_wake_share_of_link`: of a wake whose pages the driver had been given back. `asleep_bytes`: then used "
        "on the device, by the driver's figure, beyond what was used before the model was loaded. "
        "`resident_over_weights`: the same while it is resident and idle, over its weights."
    )
    rates = (
        ("link", found.link_rates),
        ("wake", found.wake_rates),
        ("fresh wake", found.fresh_wake_rates),
    )
    report.table(
        ["GB/s", *(str(number) for number in range(1, load.wakes + 1))],
        [[name, *(rate / 1e9 for rate in each)] for name, each in rates],
    )
    report.data("wakes", asdict(found))
    return {
        "wake_share_of_link": statistics.median(found.wake_rates) / link,
        "fresh_wake_share_of_link": statistics.median(found.fresh_wake_rates) / link,
        "link_gb_per_s": link / 1e9,
        "asleep_bytes": found.asleep_bytes - found.unloaded_bytes,
        "resident_over_weights": (found.resident_bytes - found.unloaded_bytes) / model.weights_bytes,
    }


async def _measure_wakes(model: PackedModel, device: torch.device, repeats: int) -> _Wakes:
    found = _Wakes()
    measure_link = _link(device, model.num_bytes)
    kv_bytes = kv_bytes_for_tokens(model.groups, 2 * _NUM_TOKENS) + PAGE_BYTES
    capacity_bytes = model.weights_bytes + kv_bytes
    arena = arena_on(str(device), capacity_bytes, capacity_bytes)
    engine = BareEngine(arena, TorchEngineConfig(device=str(device), cpu_wake="copy"))
    engine.lease(kv_bytes)

    def generate() -> list[int]:
        return engine.generate(REPLICA, list(range(_NUM_TOKENS)), _NUM_TOKENS)

    def wake() -> float:
        started_s = time.perf_counter()
        engine.engine.wake(REPLICA, model.weights_bytes)
        return model.num_bytes / (time.perf_counter() - started_s)

    try:
        async with resident(engine, model):
            said = generate()  # libraries keep some memory once they have been used; it belongs to no model
        found.unloaded_bytes = _used_bytes(device, arena)
        async with resident(engine, model):
            for _ in range(repeats):
                engine.engine.sleep(REPLICA)
                found.link_rates.append(measure_link())
                found.wake_rates.append(wake())
                engine.engine.sleep(REPLICA)
                arena.trim()
                found.fresh_wake_rates.append(wake())
            if generate() != said:
                raise MooringError("the model says something else after its wakes")
            found.resident_bytes = _used_bytes(device, arena)
            engine.engine.sleep(REPLICA)
            found.asleep_bytes = _used_bytes(device, arena)
    finally:
        engine.close()
    return found


def _link(device: torch.device, num_bytes: int) -> Callable[[], float]:
    """Returns a function that measures the rate from host memory to the device, in bytes per second, at its
    quickest."""
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
    """Bytes used on the device by the driver's figure, without memory that is only kept for later. On the
    host the arena's figure is taken, since host memory holds much else of this process."""
    arena.trim()
    if device.type != "cuda":
        return arena.committed_bytes
    gc.collect()
    torch.cuda.empty_cache()
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    return total_bytes - free_bytes


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
