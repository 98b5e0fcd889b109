"""A long run under everything at once: random load, registrations, sleeps, deaths, memory pressure; nothing
is lost.

``mooring bench soak --minutes 20 --out DIR``, in fp32. Every request is one of a set whose answers were taken
before, from each model undisturbed; two candidates within 1e-4 are a near tie (``benchmarks.streams``). At
checkpoints the load pauses and the books are read.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import psutil

from benchmarks.memory_rates import anonymous_bytes
from benchmarks.random_models import SMALL_SHAPE, TINY_SHAPE, make_random_models
from benchmarks.report import Report
from benchmarks.soak_books import count_mismatches, growth_share
from benchmarks.soak_disturbances import Disturbances, Guest
from benchmarks.streams import Agreement, Outcome, Stream, compare, draw_streams, run_stream, run_streams
from engines.checkpoint.model_config import ModelConfig, describe, kv_groups
from memory_manager.kv_spec import PAGE_BYTES, kv_bytes_for_tokens, round_to_pages
from memory_manager.watch.devices import HostReader
from mooring.errors import MooringError
from mooring.units import MIB, format_bytes
from mooring.v1 import inference_pb2_grpc
from ops.running_server import RunningServer

__all__ = ["SoakLoad", "main"]

MODELS = ("one", "two", "three")
GUEST = "guest"
BUDGET_IN_MODELS = 2.2


@dataclass(frozen=True, slots=True)
class SoakLoad:
    """Amounts of everything in a soak.

    Attributes:
        duration_s: length of the disturbed part.
        shape: config.json of all models.
        num_streams: different requests to each model.
        max_tokens: output of each request, in tokens.
        at_once: requests that run at any time.
        mean_pause_s: mean pause between two requests of one client.
        mean_event_s: mean time between two disturbances.
        kill_s: time between two kills of the workers; more than a minute, since the second of two kills within one
            is blamed on the requests in the step.
        checkpoint_s: time between two checkpoints.
        pressure_bytes: memory that a process beside the server takes at times. The server's margin for others
            is such that it feels all but ``slack_bytes`` of it.
        slack_bytes: memory that others may take before the server gives up any of its budget.
        seed: seed of everything random.
        num_threads: threads that torch computes with; None leaves the engine's own choice.
    """

    duration_s: float
    shape: Mapping[str, Any]
    num_streams: int = 60
    max_tokens: int = 32
    at_once: int = 12
    mean_pause_s: float = 0.3
    mean_event_s: float = 4.0
    kill_s: float = 75.0
    checkpoint_s: float = 30.0
    pressure_bytes: int = 2560 * MIB
    slack_bytes: int = 1536 * MIB
    seed: int = 0
    num_threads: int | None = None

    @classmethod
    def full(cls, minutes: float, seed: int) -> SoakLoad:
        """Models of 25 million parameters."""
        return cls(60 * minutes, SMALL_SHAPE, seed=seed)

    @classmethod
    def quick(cls, seed: int) -> SoakLoad:
        """Tiny models and a few seconds: shows whether the soak works, even if other tests take several 100
        MiB meanwhile."""
        return cls(8.0, TINY_SHAPE, 6, 8, 4, 0.05, 0.5, 4.0, 3.0, 1280 * MIB, 1024 * MIB, seed, 1)


@dataclass(slots=True)
class _Checkpoint:
    """Readings while nothing ran."""

    at_s: float
    anonymous_bytes: int
    ledger_bytes: int
    mismatches: int


@dataclass(slots=True)
class _Found:
    agreements: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    checkpoints: list[_Checkpoint] = field(default_factory=list)


class _Soak:
    """The disturbed part of a soak."""

    def __init__(
        self, server: RunningServer, load: SoakLoad, references: Mapping[Stream, Outcome], guest: Guest
    ) -> None:
        self._server = server
        self._load = load
        self._references = references
        self._rng = random.Random(load.seed)
        self._streams = [each for each in references if each.model != GUEST]
        self._open = asyncio.Event()  # whether requests may begin
        self._undisturbed = asyncio.Lock()
        self._num_running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._started_s = time.monotonic()
        self._until_s = self._started_s + load.duration_s
        self.found = _Found()
        bursts = self._rng.sample(self._streams, min(4 * load.at_once, len(self._streams)))
        self.disturbances = Disturbances(
            server, MODELS, guest, bursts, self._run_all, load.pressure_bytes, load.seed
        )

    async def run(self) -> None:
        self._open.set()
        async with grpc.aio.insecure_channel(self._server.grpc_target) as channel:
            self._stub = inference_pb2_grpc.InferenceStub(channel)  # type: ignore[no-untyped-call]
            async with asyncio.TaskGroup() as tasks:
                for _ in range(self._load.at_once):
                    tasks.create_task(self._client())
                tasks.create_task(self._disturb())
                tasks.create_task(self._kill())
                tasks.create_task(self._check())

    def _over(self) -> bool:
        return time.monotonic() >= self._until_s

    async def _client(self) -> None:
        while not self._over():
            await self._run_one(self._rng.choice(self._streams))
            await asyncio.sleep(self._rng.expovariate(1 / self._load.mean_pause_s))

    async def _run_all(self, streams: Sequence[Stream]) -> None:
        await asyncio.gather(*(self._run_one(stream) for stream in streams))

    async def _run_one(self, stream: Stream) -> None:
        await self._open.wait()
        self._num_running += 1
        self._idle.clear()
        try:
            outcome = await run_stream(self._stub, stream)
        finally:
            self._num_running -= 1
            if not self._num_running:
                self._idle.set()
        agreement = compare(stream, self._references[stream], outcome)
        self.found.agreements[agreement.value] += 1
        if agreement in (Agreement.LOST, Agreement.ALTERED):
            self.found.errors[f"{agreement.value} {stream.model}: {outcome.error or 'other tokens'}"] += 1

    async def _disturb(self) -> None:
        while not self._over():
            await asyncio.sleep(self._rng.expovariate(1 / self._load.mean_event_s))
            async with self._undisturbed:
                await self.disturbances.disturb()

    async def _kill(self) -> None:
        while time.monotonic() + self._load.kill_s < self._until_s:
            await asyncio.sleep(self._load.kill_s)
            await asyncio.to_thread(self.disturbances.kill_workers)

    async def _check(self) -> None:
        while not self._over():
            await asyncio.sleep(self._load.checkpoint_s)
            async with self._undisturbed:
                self._open.clear()
                await self._idle.wait()
                await asyncio.sleep(1.5)  # longer than the manager takes between two looks at its workers
                self.found.checkpoints.append(await asyncio.to_thread(self._checkpoint))
                self._open.set()

    def _checkpoint(self) -> _Checkpoint:
        status = self._server.status()
        mismatches = count_mismatches(status)
        # Devices and deployments are read one after the other, and a worker may have come in between.
        if mismatches:
            time.sleep(1.0)
            mismatches = min(mismatches, count_mismatches(self._server.status()))
        server = psutil.Process(self._server.process.pid)
        pids = [server.pid, *(child.pid for child in server.children(recursive=True))]
        return _Checkpoint(
            time.monotonic() - self._started_s,
            sum(anonymous_bytes(pid) for pid in pids),
            sum(sum(device["owners"].values()) for device in status["devices"]),
            int(status["ledger_mismatches"]) + mismatches,
        )


def main(out: Path, load: SoakLoad, show: Callable[[str], None]) -> dict[str, float]:
    """Runs the soak and writes its report; returns the figures."""
    report = Report(out, "A soak")
    with tempfile.TemporaryDirectory(prefix="mooring-bench-") as name:
        scratch = Path(name)
        folders = make_random_models(scratch / "models", load.shape, (*MODELS, GUEST), "fp32")
        streams = draw_streams(
            tuple(folders), load.num_streams, load.max_tokens, load.seed, load.shape["vocab_size"]
        )
        references = _references(scratch, folders, streams, load)
        show(f"{len(references)} answers taken, each from its model undisturbed")
        settings, max_model_len = _write_config(scratch, folders, load)
        with RunningServer(scratch / "data", {}, config=settings) as server:
            guest = Guest(
                GUEST,
                folders[GUEST],
                {"max_model_len": max_model_len},
                [each for each in streams if each.model == GUEST][:4],
            )
            found, counts = asyncio.run(_soak(server, load, references, guest))
    figures = _figures(found, load)
    _describe(report, load, found, counts)
    for figure, value in figures.items():
        report.figure(figure, value)
    report.data("disturbances", dict(counts))
    report.data("errors", dict(found.errors))
    report.data("checkpoints", [asdict(each) for each in found.checkpoints])
    report.write()
    for error, times in found.errors.items():
        show(f"{times} times {error}")
    return figures


async def _soak(
    server: RunningServer, load: SoakLoad, references: Mapping[Stream, Outcome], guest: Guest
) -> tuple[_Found, Counter[str]]:
    soak = _Soak(server, load, references, guest)
    await soak.run()
    return soak.found, soak.disturbances.counts


def _references(
    scratch: Path, folders: Mapping[str, Path], streams: Sequence[Stream], load: SoakLoad
) -> dict[Stream, Outcome]:
    """The answers of each model with room for all of them, one request at a time."""
    flags = ["--dtype", "float32", "--memory-budget", "4GiB"]
    environment = {} if load.num_threads is None else {"MOORING_TORCH__NUM_THREADS": str(load.num_threads)}
    with RunningServer(scratch / "alone", folders, flags, environment) as server:
        outcomes = asyncio.run(run_streams(server.grpc_target, streams, 1))
    for stream, outcome in zip(streams, outcomes, strict=True):
        if outcome.error:
            raise MooringError(f"{stream.model}, undisturbed: {outcome.error}")
    return dict(zip(streams, outcomes, strict=True))


def _write_config(scratch: Path, folders: Mapping[str, Path], load: SoakLoad) -> tuple[Path, int]:
    """Writes settings with a budget for 2.2 models and the KV of a few sequences; also returns the longest
    sequence in tokens."""
    description = describe(folders[MODELS[0]])
    groups = kv_groups(ModelConfig.from_dict(description.config), 4)
    max_model_len = 64 + load.max_tokens
    weights_bytes = round_to_pages(description.weights_bytes("fp32")) + PAGE_BYTES
    budget_bytes = int(BUDGET_IN_MODELS * weights_bytes) + 6 * kv_bytes_for_tokens(groups, max_model_len)
    memory = HostReader(set).read()  # as the server will read it
    free_bytes = 0 if memory is None else memory.free_bytes
    margin_bytes = max(0, free_bytes - budget_bytes - load.slack_bytes)
    lines = [
        'dtype = "float32"',
        f"memory_budget = {budget_bytes}",
        f"host_cache_budget = {5 * weights_bytes}",
    ]
    for name in MODELS:
        lines += ["[[models]]", f'name = "{name}"', f'source = "{folders[name]}"']
        lines += [f"max_model_len = {max_model_len}"]
    lines += ["[others]", f"margin = {margin_bytes}", "grow_after_s = 2.0"]
    if load.num_threads is not None:
        lines += ["[torch]", f"num_threads = {load.num_threads}"]
    path = scratch / "mooring.toml"
    path.write_text("\n".join(lines) + "\n")
    return path, max_model_len


def _figures(found: _Found, load: SoakLoad) -> dict[str, float]:
    agreements = found.agreements
    return {
        "minutes": load.duration_s / 60,
        "requests": agreements.total(),
        "equal": agreements[Agreement.EQUAL.value],
        "near_ties": agreements[Agreement.NEAR_TIE.value],
        "lost": agreements[Agreement.LOST.value],
        "altered": agreements[Agreement.ALTERED.value],
        "checkpoints": len(found.checkpoints),
        "ledger_mismatches": max((each.mismatches for each in found.checkpoints), default=0),
        "rss_growth_share": growth_share([each.anonymous_bytes for each in found.checkpoints]),
    }


def _describe(report: Report, load: SoakLoad, found: _Found, counts: Counter[str]) -> None:
    done = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in sorted(counts.items()))
    report.text(
        f"Three models in fp32 on a budget for {BUDGET_IN_MODELS} of them, {load.at_once} clients for "
        f"{load.duration_s / 60:.1f} minutes, outputs of {load.max_tokens} tokens, half of the requests "
        "greedy and half at "
        f"temperature 1; meanwhile {done}. The guest of the registrations is asked and deleted each time; "
        "memory pressure "
        f"is a process that takes {format_bytes(load.pressure_bytes)}, of which the server may overlook "
        f"{format_bytes(load.slack_bytes)}: it has to give its whole budget up and gets it back."
    )
    report.text(
        "`lost` did not finish; `altered` gave other tokens than the model gives undisturbed, near ties aside. "
        "`ledger_mismatches`: what the manager found when it asked its workers, every second, and what the "
        "checkpoints "
        "found in the status. `rss_growth_share`: anonymous memory of the server and its workers at the checkpoints, "
        "the median of the last quarter over that of the one before it."
    )
    _plot(report.plot("memory", "Anonymous memory at the checkpoints"), found.checkpoints)


def _plot(path: Path, checkpoints: Sequence[_Checkpoint]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.5))
    minutes = [each.at_s / 60 for each in checkpoints]
    axes.plot(minutes, [each.anonymous_bytes / MIB for each in checkpoints], marker=".")
    axes.set_xlabel("minutes")
    axes.set_ylabel("MiB")
    axes.set_ylim(bottom=0)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
