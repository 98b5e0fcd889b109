"""The cost of the router: latency, throughput and CPU time beside an engine that answers at once.

``mooring bench router`` starts a real server, one router process with a real worker that runs the null
engine, and puts load on each door from a compiled program. The router has a core of its own; the worker and
the load generator share another.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.load_generator import DoorLoad, LoadGenerator, LoadResult
from benchmarks.null_model import NullModel, make_null_model
from benchmarks.profile import flame_graph, shares
from benchmarks.report import Report
from benchmarks.router_doors import DOORS, MODEL, Door
from mooring.errors import ConfigurationError
from ops.running_server import RunningServer

__all__ = ["RouterLoad", "main", "measure_door"]

_LATENCY_REQUESTS = 200
_LATENCY_TOKENS = 8
_PROFILE_S = 8

# The deepest frame of a stack that names a file decides. C code (protobuf, gRPC's core, uvloop) has no frames
# and counts for its caller.
_PARTS = {
    "gRPC with the worker": ("engines/supervise/client.py",),
    "dispatch": ("router/dispatch/",),
    "text": ("router/text/", "router/intake.py"),
    "metrics": ("router/telemetry/metrics.py", "prometheus_client"),
    "answers": ("router/doors/openai/answers.py", "router/doors/openai/bodies.py"),
    "HTTP": ("uvicorn", "starlette", "fastapi", "router/doors/http", "router/doors/openai/"),
    "KServe door": ("router/doors/kserve/",),
    "native gRPC door": ("router/doors/grpc/", "router/doors/grpc_app.py"),
    "memory manager": ("memory_manager/",),
    "event loop, and gRPC in it": ("grpc/aio", "asyncio", "uvloop"),
    "gRPC's polling thread": ("threading.py",),
}


@dataclass(frozen=True, slots=True)
class RouterLoad:
    """Amounts of everything that is measured.

    Attributes:
        num_streams: streams that run at once while throughput is measured.
        num_requests: requests of one run.
        tokens: tokens of each stream; each is an event of its own.
        repeats: runs of each measurement; the median counts.
    """

    num_streams: int = 64
    num_requests: int = 256
    tokens: int = 256
    repeats: int = 5


@dataclass(frozen=True, slots=True)
class _Cores:
    """The core of the router, and the core of everything else; None if there is only one core."""

    router: int | None
    others: int | None

    @classmethod
    def found(cls) -> _Cores:
        cores = sorted(os.sched_getaffinity(0))
        return cls(None, None) if len(cores) < 2 else cls(cores[0], cores[1])


class _Bench:
    """One server under load."""

    def __init__(self, server: RunningServer, generator: LoadGenerator, load: RouterLoad) -> None:
        self.server = server
        self.load = load
        self._generator = generator
        self._router = psutil.Process(server.process.pid)

    def run(self, door: Door, num_streams: int, num_requests: int, tokens: int) -> tuple[LoadResult, float]:
        """Puts load on a door; returns the result and the router's CPU seconds."""
        address = self.server.http_url.removeprefix("http://")
        if door.protocol == "grpc":
            address = self.server.grpc_target
        bodies = [
            door.body(f"Say something that nobody said {number} times.", tokens) for number in range(64)
        ]
        units = tokens + door.num_extra_units
        load = DoorLoad(door.protocol, address, door.path, bodies, units, num_streams, num_requests)
        before_s = self._cpu_s()
        result = self._generator.run(load)
        return result, self._cpu_s() - before_s

    def saturate(self, door: Door) -> tuple[float, float]:
        """Tokens a second under full load, and the router's CPU milliseconds for 1,000 of them."""
        load = self.load
        result, cpu_s = self.run(door, load.num_streams, load.num_requests, load.tokens)
        num_tokens = load.num_requests * load.tokens
        return num_tokens / result.seconds, 1e6 * cpu_s / num_tokens

    def profile(self, door: Door, out: Path) -> None:
        """Records the router while the door is under load, from before its beginning until after its end."""
        recorder = flame_graph(self.server.process.pid, out, _PROFILE_S)
        try:
            while recorder.poll() is None:
                self.saturate(door)
        finally:
            recorder.wait()

    def _cpu_s(self) -> float:
        times = self._router.cpu_times()
        return float(times.user + times.system)


def measure_door(bench: _Bench, name: str, show: Callable[[str, float], None]) -> dict[str, float]:
    """The figures of one door, by their names."""
    door = DOORS[name]
    bench.saturate(door)  # warm: connections, caches, the interpreter's specialized code
    rates, costs, firsts = [], [], []
    for _ in range(bench.load.repeats):
        tokens_per_s, cpu_ms = bench.saturate(door)
        rates.append(tokens_per_s)
        costs.append(cpu_ms)
        result, _ = bench.run(door, 1, _LATENCY_REQUESTS, _LATENCY_TOKENS)
        firsts.append(1e3 * result.first_s_p50)
    figures = {
        f"{name}_tokens_per_s_{bench.load.num_streams}": statistics.median(rates),
        f"{name}_cpu_ms_per_1000": statistics.median(costs),
        f"{name}_first_token_ms_p50": statistics.median(firsts),
    }
    for figure, value in figures.items():
        show(figure, value)
    return figures


def main(
    out: Path, load: RouterLoad, samples: Path | None, profiled: bool, show: Callable[[str, float], None]
) -> dict[str, float]:
    """Measures every door and writes the report; returns the figures.

    Args:
        samples: folder of the sample models, whose tokenizer is used if it is there.
        profiled: whether to record flame graphs too.
        show: called with each figure as it is known.

    Raises:
        ConfigurationError: something that the benchmark needs is not on this machine.
        InternalError: a token was lost, repeated or not sent by itself.
    """
    cores = _Cores.found()
    report = Report(out, "What the router costs")
    with tempfile.TemporaryDirectory(prefix="mooring-bench-") as name:
        scratch = Path(name)
        generator = LoadGenerator(scratch, cores.others)
        model = make_null_model(scratch / "model", samples)
        if model.num_token_ids < load.tokens:
            raise ConfigurationError(
                f"the tokenizer has {model.num_token_ids} different tokens in a row: ask for no more of each stream"
            )
        with RunningServer(scratch / "data", {MODEL: model.folder}, config=_config(scratch, model)) as server:
            _pin(server, cores)
            bench = _Bench(server, generator, load)
            figures: dict[str, float] = {}
            for door in DOORS:
                figures |= measure_door(bench, door, show)
            figures["added_ms_p50"] = figures["http_first_token_ms_p50"]
            _describe(report, load, model, cores)
            for figure, value in figures.items():
                report.figure(figure, value)
            if profiled:
                _profile(report, bench)
    report.write()
    return figures


def _config(scratch: Path, model: NullModel) -> Path:
    path = scratch / "mooring.toml"
    path.write_text(
        'engine = "null"\nmemory_budget = "256MiB"\nhost_cache_budget = "256MiB"\n[null]\n'
        f"first_token_id = {model.first_token_id}\nnum_token_ids = {model.num_token_ids}\n"
    )
    return path


def _pin(server: RunningServer, cores: _Cores) -> None:
    """Pins every thread that is there; later threads inherit the core from these."""
    if cores.router is None or cores.others is None:
        return
    placed = {server.process.pid: cores.router} | dict.fromkeys(server.worker_pids(), cores.others)
    for pid, core in placed.items():
        for thread in psutil.Process(pid).threads():
            os.sched_setaffinity(thread.id, {core})


def _describe(report: Report, load: RouterLoad, model: NullModel, cores: _Cores) -> None:
    pinned = (
        f"The router process (all of its threads) is pinned to core {cores.router}; the worker and the load "
        f"generator share core {cores.others}."
        if cores.router is not None
        else "There is one core, and all share it."
    )
    report.text(
        f"One server process, one worker with the null engine, which gives each sequence one token a step and "
        f"takes no time for it; tokenizer: {model.tokenizer}. {pinned}"
    )
    report.text(
        f"Throughput: {load.num_requests} streaming requests of {load.tokens} tokens, {load.num_streams} at a time; "
        "every token is an event (a message, over gRPC) of its own, no two of a stream are alike, and the load "
        "generator has counted them all. CPU time is the router process's, from /proc. Over HTTP each stream has a "
        "connection, over gRPC all share one."
    )
    report.text(
        f"First token: {_LATENCY_REQUESTS} streaming requests one after the other, from before the request is "
        "written to after the first event is read. `added_ms_p50` is that of a chat request over HTTP. Nothing is "
        "taken off for what the worker and its socket take, so it is an upper bound of what the router adds. Each "
        f"figure is the median of {load.repeats} runs."
    )


def _profile(report: Report, bench: _Bench) -> None:
    for name, door in DOORS.items():
        bench.profile(door, report.out / f"{name}.svg")
        stacks = report.out / f"{name}-stacks.txt"
        bench.profile(door, stacks)
        found = shares(stacks, _PARTS)
        stacks.unlink()
        report.text(f"## Where the time of the router process goes: {name}\n\n[Flame graph]({name}.svg)")
        report.table(["part", "share of samples"], [[part, share] for part, share in found.items()])
        report.data(f"{name}_shares", found)
