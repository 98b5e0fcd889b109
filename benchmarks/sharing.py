"""Three models under bursty, skewed traffic on one budget: elastic, statically partitioned, and swapped.

``mooring bench sharing --out DIR``. First in virtual time, over a grid of budgets, wakes and loads
(``benchmarks.sharing_simulated``). Then real servers, one for each policy, at each load one after the other with
the same trace (``benchmarks.traces``; the traces lie beside the report, for anybody to replay): on a budget that
holds all weights and little KV, then on one that holds two of the three models.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from benchmarks.engine_setup import load_engine
from benchmarks.llama_cpp_peer import measure_peer
from benchmarks.random_models import SMALL_SHAPE, TINY_SHAPE, make_random_models
from benchmarks.replay import Summary, Targets, Timing, replay, summarize
from benchmarks.report import Report
from benchmarks.sharing_figures import FULL_GOAL, STATIC_GOAL, compare, highest_load
from benchmarks.sharing_policies import Arrangement, Budget, SharingPolicy, write_config
from benchmarks.sharing_simulated import (
    fit_step_costs,
    grid_figures,
    quick_grid,
    report_grid,
    simulate_grid,
    whole_grid,
)
from benchmarks.traces import TraceRequest, TraceSpec, draw_trace, write_trace
from mooring.config import Settings
from mooring.server.precision import auto_precision
from mooring.units import format_bytes
from ops.running_server import RunningServer

__all__ = ["PARTS", "SharingLoad", "main"]

PARTS = ("simulated", "real")
MODELS = ("popular", "middling", "rare")
TTFT_TIMES_ALONE, TPOT_TIMES_ALONE = 10.0, 8.0
# Multiple of the rate of one request after the other; batching does more than that rate.
_FIRST_LOAD_TIMES_ALONE = 2.4
_WELL_PAST_FULL = 0.85  # attainment of the elastic policy at which its curve ends
_WORTH_MEASURING = 0.25  # attainment below which a policy's curve is not followed to higher loads

Curves = dict[SharingPolicy, dict[float, Summary]]


@dataclass(frozen=True, slots=True)
class SharingLoad:
    """Amounts of everything that is measured.

    Attributes:
        shape: config.json of the models.
        shape_name: the report's words for the shape.
        trace: a trace's settings, whose load and models are replaced.
        max_model_len: context in tokens; prompts and outputs fit.
        num_sequences: sequences of the longest length that the KV holds in all.
        load_step: factor between neighbouring loads.
        max_loads: most loads that are measured.
        patience_s: seconds for which running requests are waited for when a trace is over.
        num_alone: requests from which the targets are found.
        budgets: measured one after the other; the targets are found on the first.
        num_threads: threads that torch computes with; None leaves the engine's own choice.
        is_quick: whether a few cells in virtual time are enough.
    """

    shape: dict[str, object]
    shape_name: str
    trace: TraceSpec
    max_model_len: int = 320
    num_sequences: int = 10
    load_step: float = 1.15
    max_loads: int = 8
    patience_s: float = 30.0
    num_alone: int = 6
    budgets: tuple[Budget, ...] = tuple(Budget)
    num_threads: int | None = None
    is_quick: bool = False

    @classmethod
    def full(cls, duration_s: float, seed: int) -> SharingLoad:
        """Models of 25 million parameters with a KV head for each query head."""
        shape = {**SMALL_SHAPE, "num_key_value_heads": SMALL_SHAPE["num_attention_heads"]}
        trace = TraceSpec(
            MODELS, 1.0, duration_s, shape["vocab_size"], 0.7, 1.0, 1.0, (32, 64), (128, 256), seed
        )
        return cls(shape, "25 million parameters with a KV head for each query head", trace)

    @classmethod
    def quick(cls, seed: int) -> SharingLoad:
        """A tiny model and a few seconds: shows whether the benchmark works, not how well anything does."""
        trace = TraceSpec(MODELS, 1.0, 1.5, TINY_SHAPE["vocab_size"], 1.0, 0.4, 0.4, (16, 64), (8, 16), seed)
        return cls(
            dict(TINY_SHAPE),
            "a tiny model",
            trace,
            128,
            max_loads=2,
            num_alone=3,
            budgets=(Budget.ALL,),
            num_threads=1,
            is_quick=True,
        )


@dataclass(frozen=True, slots=True)
class _Goal:
    """The targets, as multiples of the times of a request alone on a resident model, and the rate of such
    requests one after the other."""

    targets: Targets
    alone_per_s: float

    @classmethod
    def found(cls, alone: list[Timing]) -> _Goal:
        ttft_s = statistics.median(each.ttft_s for each in alone)
        tpot_s = statistics.median(each.tpot_s for each in alone)
        alone_s = statistics.fmean(each.end_s for each in alone)
        return cls(Targets(TTFT_TIMES_ALONE * ttft_s, TPOT_TIMES_ALONE * tpot_s), 1 / alone_s)


@dataclass(slots=True)
class _Bench:
    """The servers of one budget, and the measurements on them."""

    load: SharingLoad
    servers: dict[SharingPolicy, RunningServer]
    targets: Targets
    traces: Path
    show: Callable[[str], None]
    curves: Curves

    def measure(self, policy: SharingPolicy, load_per_s: float) -> Summary:
        curve = self.curves[policy]
        if load_per_s not in curve:
            spec = replace(self.load.trace, requests_per_s=load_per_s)
            timings = self._replay(self.servers[policy], self._trace(spec))
            curve[load_per_s] = summarize(timings, self.targets, spec.duration_s)
            self.show(f"{policy.value:>8} {load_per_s:6.2f}/s  {_one_line(curve[load_per_s])}")
        return curve[load_per_s]

    def explore(self, first_load_per_s: float) -> None:
        """Measures upwards until the elastic policy is well past its limit, then downwards until all
        questions to the curves are answered, or ``max_loads`` have been tried."""
        step, loads = self.load.load_step, [first_load_per_s]
        while self._measure_all(loads[-1]) >= _WELL_PAST_FULL and len(loads) < self.load.max_loads:
            loads.append(loads[-1] * step)
        lowest = first_load_per_s
        while not self._answered() and len(loads) < self.load.max_loads:
            lowest /= step
            loads.append(lowest)
            for policy in (SharingPolicy.ELASTIC, SharingPolicy.STATIC):
                self.measure(policy, lowest)
        at_99 = highest_load(self.curves[SharingPolicy.ELASTIC], FULL_GOAL)
        if at_99 is not None:
            self.measure(SharingPolicy.SWAP, at_99)

    def _measure_all(self, load_per_s: float) -> float:
        """Measures each policy that is worth it at this load; returns the attainment of the elastic one."""
        attainment = self.measure(SharingPolicy.ELASTIC, load_per_s).attainment
        for policy in (SharingPolicy.STATIC, SharingPolicy.SWAP):
            lower = [summary for load, summary in self.curves[policy].items() if load < load_per_s]
            if all(summary.attainment >= _WORTH_MEASURING for summary in lower):
                self.measure(policy, load_per_s)
        return attainment

    def _answered(self) -> bool:
        elastic, static = self.curves[SharingPolicy.ELASTIC], self.curves[SharingPolicy.STATIC]
        if highest_load(elastic, FULL_GOAL) is None:
            return False
        unserved = len(self.load.trace.models) - len(
            self.servers[SharingPolicy.STATIC].status()["deployments"]
        )
        return bool(unserved) or None not in (
            highest_load(static, STATIC_GOAL),
            highest_load(static, FULL_GOAL),
        )

    def _trace(self, spec: TraceSpec) -> list[TraceRequest]:
        path = self.traces / f"{spec.requests_per_s:.3f}-per-s.jsonl"
        requests = draw_trace(spec)
        write_trace(path, requests)
        return requests

    def _replay(self, server: RunningServer, requests: list[TraceRequest]) -> list[Timing]:
        return asyncio.run(replay(server.grpc_target, requests, self.load.patience_s))


def main(
    out: Path,
    load: SharingLoad,
    show: Callable[[str], None],
    parts: Collection[str] = PARTS,
    peer_gguf: Path | None = None,
) -> dict[str, float]:
    """Measures everything and writes the report; returns the figures, named with ``_real`` where servers ran.

    Args:
        show: called with a line for each measurement as it is known.
        parts: of ``PARTS``.
        peer_gguf: a model file that llama-cpp-python's server serves under three names, beside us.
    """
    report = Report(out, "Three models under bursts on one budget")
    precision: Literal["bf16", "fp32"] = "bf16"
    if auto_precision(Settings()).precision != precision:
        precision = "fp32"
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="mooring-bench-") as name:
        folders = make_random_models(Path(name) / "models", load.shape, MODELS, precision)
        if "simulated" in parts:
            figures |= _simulate(report, load, folders[MODELS[0]], show)
        if "real" in parts:
            found = _measure(report, load, folders, precision, Path(name), show, peer_gguf)
            figures |= {f"{figure}_real": value for figure, value in found.items()}
    for figure, value in figures.items():
        report.figure(figure, value)
    report.write()
    return figures


def _simulate(
    report: Report, load: SharingLoad, folder: Path, show: Callable[[str], None]
) -> dict[str, float]:
    costs = fit_step_costs(load_engine(folder))
    ttft_s = costs.of(0, round(statistics.fmean(load.trace.prompt_tokens)))
    targets = Targets(TTFT_TIMES_ALONE * ttft_s, TPOT_TIMES_ALONE * costs.of(1, 0))
    grid = whole_grid(costs, load.trace, load.num_sequences * load.max_model_len, targets)
    grid = quick_grid(grid) if load.is_quick else grid
    cells, requests_per_s = simulate_grid(grid, show)
    report_grid(report, grid, cells, requests_per_s)
    return {**grid_figures(cells, len(MODELS)), "simulated_requests_per_s": requests_per_s}


def _measure(
    report: Report,
    load: SharingLoad,
    folders: Mapping[str, Path],
    precision: str,
    scratch: Path,
    show: Callable[[str], None],
    peer_gguf: Path | None,
) -> dict[str, float]:
    """Measures real servers."""
    traces = report.out / "traces"
    traces.mkdir(exist_ok=True)
    figures: dict[str, float] = {}
    arrangement = Arrangement.of(folders, precision, load.max_model_len, load.num_sequences)
    goal: _Goal | None = None
    for budget in load.budgets:
        show(f"budget for {budget.value}: {format_bytes(arrangement.budget_bytes(budget))}")
        with ExitStack() as stack:
            servers = {
                policy: stack.enter_context(_server(scratch, arrangement, budget, policy, load.num_threads))
                for policy in SharingPolicy
            }
            for server in servers.values():
                _alone(server, load)  # everything is in the host cache now, and pages have been touched
            if goal is None:
                goal = _Goal.found(_alone(servers[SharingPolicy.ELASTIC], load))
                _describe(report, arrangement, load, goal.targets)
            bench = _Bench(
                load, servers, goal.targets, traces, show, {policy: {} for policy in SharingPolicy}
            )
            fit = arrangement.num_models(budget) / len(load.trace.models)
            bench.explore(_FIRST_LOAD_TIMES_ALONE * fit * goal.alone_per_s)
        elastic, static, swap = (bench.curves[policy] for policy in SharingPolicy)
        found = compare(elastic, static, swap, load.trace.duration_s)
        suffix = "" if budget is Budget.ALL else f"_{budget.value}"
        figures |= {f"{figure}{suffix}": value for figure, value in found.items()}
        _show_curves(report, budget, bench.curves)
    assert goal is not None, "there is a budget"
    peer = measure_peer(scratch, peer_gguf, load.trace, goal.targets, goal.alone_per_s, load.patience_s)
    report.text(f"## llama-cpp-python's server with its model swap, for orientation\n\n{peer.description}")
    report.data("llama_cpp_python", {str(rate): asdict(summary) for rate, summary in peer.curve.items()})
    return figures


def _server(
    scratch: Path, arrangement: Arrangement, budget: Budget, policy: SharingPolicy, num_threads: int | None
) -> RunningServer:
    name = f"{budget.value}-{policy.value}"
    config = scratch / f"{name}.toml"
    write_config(arrangement, budget, policy, config, num_threads)
    return RunningServer(scratch / name, {}, config=config)


def _alone(server: RunningServer, load: SharingLoad) -> list[Timing]:
    """Sends one request at a time, to the models that the server serves in turn; returns the timings."""
    served = [each["name"] for each in server.status()["deployments"]]
    drawn = draw_trace(replace(load.trace, requests_per_s=100.0, seed=load.trace.seed + 1))
    requests = [
        replace(request, at_s=0.0, model=served[index % len(served)])
        for index, request in enumerate(drawn[: load.num_alone])
    ]
    return [asyncio.run(replay(server.grpc_target, [request], patience_s=60.0))[0] for request in requests]


def _describe(report: Report, arrangement: Arrangement, load: SharingLoad, targets: Targets) -> None:
    trace = load.trace
    report.text(
        f"Three models of {load.shape_name} in {arrangement.precision} with random weights, "
        f"{format_bytes(arrangement.weights_bytes)} each, and {format_bytes(arrangement.kv_bytes)} of KV: "
        f"{load.num_sequences} sequences of {load.max_model_len} tokens. Traces of {trace.duration_s:g} s with seed "
        f"{trace.seed}: Zipf with exponent {trace.zipf_exponent:g}, bursts of {trace.mean_on_s:g} s with "
        f"{trace.mean_off_s:g} s between (means), prompts of {trace.prompt_tokens[0]} to {trace.prompt_tokens[1]} "
        f"tokens, outputs of {trace.output_tokens[0]} to {trace.output_tokens[1]}, log-uniform, greedy. The same "
        "bursts at every load."
    )
    report.text(
        f"A request counts as attained with its first token within {targets.ttft_s:.2f} s and at most "
        f"{1e3 * targets.tpot_s:.0f} ms for each token after it: {TTFT_TIMES_ALONE:g} and {TPOT_TIMES_ALONE:g} times "
        "what one takes alone on a resident model. Goodput is attained requests per second of the trace; p99 is "
        "over all requests, those that were refused or given up counted with the time that they had waited."
    )
    report.text(
        "All three are the same engine. Elastic: KV floats. Static: each model holds an equal part of the KV, "
        "guaranteed and capped; where only two fit, the two most popular ones are served and the third is refused. "
        "Swap: each model is guaranteed all that its weights leave, so one is resident at a time."
    )


def _show_curves(report: Report, budget: Budget, curves: Curves) -> None:
    title = "all weights and little KV" if budget is Budget.ALL else "two of the three models"
    report.text(f"## A budget that holds {title}")
    columns = ("attainment", "goodput_per_s", "ttft_p50_s", "ttft_p99_s", "tpot_p99_s", "num_failed")
    report.table(
        ["policy", "requests/s", "requests", *columns],
        [
            [policy.value, load, summary.num_requests, *(getattr(summary, column) for column in columns)]
            for policy, curve in curves.items()
            for load, summary in sorted(curve.items())
        ],
    )
    _plot(report.plot(budget.value, f"Attainment, goodput and TTFT against load, {title}"), curves)
    report.data(
        budget.value,
        {
            policy.value: {str(load): asdict(summary) for load, summary in sorted(curve.items())}
            for policy, curve in curves.items()
        },
    )


def _plot(path: Path, curves: Curves) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = (
        ("attainment", "share attained"),
        ("goodput_per_s", "goodput, requests/s"),
        ("ttft_p99_s", "p99 TTFT, s"),
    )
    figure, all_axes = pyplot.subplots(1, len(panels), figsize=(12, 3.8))
    for axes, (column, label) in zip(all_axes, panels, strict=True):
        for (policy, curve), marker in zip(curves.items(), "osv", strict=True):
            loads = sorted(curve)
            axes.plot(
                loads, [getattr(curve[load], column) for load in loads], marker=marker, label=policy.value
            )
        axes.set_xlabel("requests offered per second")
        axes.set_ylabel(label)
        if column == "ttft_p99_s":
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
    all_axes[0].axhline(FULL_GOAL, color="grey", linestyle=":")
    all_axes[0].axhline(STATIC_GOAL, color="grey", linestyle=":")
    all_axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _one_line(summary: Summary) -> str:
    return (
        f"{100 * summary.attainment:5.1f} % of {summary.num_requests} attained, goodput "
        f"{summary.goodput_per_s:.2f}/s, TTFT p99 {summary.ttft_p99_s:.2f} s"
    )
