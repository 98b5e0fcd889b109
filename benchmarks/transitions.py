"""Wakes and cold loads of one model in one process, against the rates of the machine's memory in the same
run."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import statistics
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

from benchmarks.bare_engine import BareEngine, PackedModel
from benchmarks.memory_rates import CopyCeiling, PeakMemory, ReadCeiling
from engines.config import TorchEngineConfig
from engines.supervise.supervisor import WORKER_ENVIRONMENT
from memory_manager.arena.host_arena import HostArena
from memory_manager.host.cache import HostCache
from memory_manager.kv_spec import PAGE_BYTES
from memory_manager.ports import ArtifactRef

__all__ = ["REPLICA", "Transitions", "measure_transitions", "resident"]

REPLICA = "model/0"

CpuWake = Literal["remap", "copy"]
_CPU_WAKES: tuple[CpuWake, ...] = ("remap", "copy")


@dataclass(slots=True)
class Transitions:
    """Every measurement, in the order in which it was taken; rates in bytes per second.

    Attributes:
        copy_rates: the machine's own rates of copying: two threads, touched memory.
        read_rates: the machine's own rates of reading a file: two threads, touched memory.
        wake_rates: weights over the seconds of a wake that copies.
        load_rates: weights over the seconds from the packed file to a resident replica, as a CPU loads unless
            it is told to copy.
        copying_load_rates: the same with a copy from the host copy to the device.
        peak_over_weights: 1 plus, as a share of the weights, the memory that a load holds at its worst beyond
            what it holds when it is done; the worse of the two kinds of load.
        held_over_weights: memory that a load holds when it is done, as a share of the weights: one copy on a
            CPU.
        asleep_bytes: device bytes that are committed while the model sleeps, beyond those of an empty engine.
    """

    copy_rates: list[float] = field(default_factory=list)
    read_rates: list[float] = field(default_factory=list)
    wake_rates: list[float] = field(default_factory=list)
    load_rates: list[float] = field(default_factory=list)
    copying_load_rates: list[float] = field(default_factory=list)
    peak_over_weights: float = 0.0
    held_over_weights: float = 0.0
    asleep_bytes: int = 0

    def figures(self) -> dict[str, float]:
        copy, read = statistics.median(self.copy_rates), statistics.median(self.read_rates)
        return {
            "wake_share_of_copy": statistics.median(self.wake_rates) / copy,
            "load_share_of_read": statistics.median(self.load_rates) / read,
            "copying_load_share_of_read": statistics.median(self.copying_load_rates) / read,
            "load_peak_over_weights": self.peak_over_weights,
            "load_held_over_weights": self.held_over_weights,
            "asleep_bytes": self.asleep_bytes,
            "copy_gb_per_s": copy / 1e9,
            "read_gb_per_s": read / 1e9,
        }


def measure_transitions(model: PackedModel, repeats: int) -> Transitions:
    """Interleaves everything ``repeats`` times, after one round that does not count. Runs in a process with a
    worker's settings of the C library and of OpenMP, which are read when a process starts."""
    before = {name: os.environ.get(name) for name in WORKER_ENVIRONMENT}
    os.environ.update(WORKER_ENVIRONMENT)
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as worker:
            return worker.submit(_measure, model, repeats).result()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _measure(model: PackedModel, repeats: int) -> Transitions:
    found = Transitions()
    for cpu_wake in _CPU_WAKES:
        peak_over_weights, held_over_weights = _measure_peak(model, cpu_wake)
        found.peak_over_weights = max(found.peak_over_weights, peak_over_weights)
        if cpu_wake == "remap":
            found.held_over_weights = held_over_weights
    copying, reading = CopyCeiling(model.num_bytes), ReadCeiling(model.weights_path)
    engines = {cpu_wake: _engine(model, cpu_wake) for cpu_wake in _CPU_WAKES}
    try:
        for number in range(repeats + 1):
            round_ = found if number else Transitions()  # the first round touches pages
            round_.copy_rates.append(copying.measure())
            round_.read_rates.append(reading.measure())
            asyncio.run(_measure_round(engines, model, round_))
    finally:
        for engine in engines.values():
            engine.close()
    return found


async def _measure_round(
    engines: Mapping[CpuWake, BareEngine], model: PackedModel, found: Transitions
) -> None:
    async with resident(engines["remap"], model) as rate:
        found.load_rates.append(rate)
    engine = engines["copy"]
    empty_bytes = engine.arena.committed_bytes
    async with resident(engine, model) as rate:
        found.copying_load_rates.append(rate)
        engine.engine.sleep(REPLICA)
        found.asleep_bytes = max(found.asleep_bytes, engine.arena.committed_bytes - empty_bytes)
        started_s = time.perf_counter()
        engine.engine.wake(REPLICA, model.weights_bytes)
        found.wake_rates.append(model.num_bytes / (time.perf_counter() - started_s))


@asynccontextmanager
async def resident(engine: BareEngine, model: PackedModel) -> AsyncIterator[float]:
    """Makes the model resident as ``REPLICA`` while the block runs; yields the rate at which it came, in
    bytes per second."""
    cache = HostCache(model.num_bytes)
    try:
        cache.expect(_artifact(model))
        await cache.wait_ready()  # a server's cache is ready some time after the model was deployed
        started_s = time.perf_counter()
        copy = await cache.get(_artifact(model))
        engine.load(REPLICA, model, host_copy_fd=os.dup(copy.fd))
        yield model.num_bytes / (time.perf_counter() - started_s)
        engine.engine.unload(REPLICA)
        copy.release()
    finally:
        await cache.close()


def _measure_peak(model: PackedModel, cpu_wake: CpuWake) -> tuple[float, float]:
    """Peak and final memory of a load into memory that was never touched, as shares of the weights."""
    engine = _engine(model, cpu_wake)

    async def load() -> tuple[float, float]:
        cache = HostCache(model.num_bytes)
        with PeakMemory() as memory:
            copy = await cache.get(_artifact(model))
            engine.load(REPLICA, model, host_copy_fd=os.dup(copy.fd))
        held_bytes = memory.after_bytes - memory.before_bytes
        beyond_bytes = max(0, memory.peak_bytes - memory.after_bytes)
        engine.engine.unload(REPLICA)
        copy.release()
        await cache.close()
        return 1 + beyond_bytes / model.num_bytes, held_bytes / model.num_bytes

    try:
        return asyncio.run(load())
    finally:
        engine.close()


def _engine(model: PackedModel, cpu_wake: CpuWake) -> BareEngine:
    capacity_bytes = model.weights_bytes + 16 * PAGE_BYTES
    arena = HostArena(capacity_bytes, stock_limit_bytes=capacity_bytes)
    engine = BareEngine(arena, TorchEngineConfig(cpu_wake=cpu_wake))
    engine.lease(8 * PAGE_BYTES)
    return engine


def _artifact(model: PackedModel) -> ArtifactRef:
    return ArtifactRef("benchmark", model.weights_path, model.num_bytes, model.manifest_json)
