"""Some cells of the sharing benchmark on real servers, beside what the simulation says of them.

For each, the same trace is replayed on a server that shares its budget elastically and on one whose budget is cut
into fixed parts, one after the other, and run in virtual time with the wakes that the server measured.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.intervals import is_as_expected, share_interval
from benchmarks.replay import Summary, Targets, Timing, replay, summarize
from benchmarks.report import Report
from benchmarks.sharing_policies import Arrangement, Budget, SharingPolicy, write_config
from benchmarks.sharing_simulated import simulate
from benchmarks.traces import TraceRequest, TraceSpec, draw_trace, write_trace
from ops.capacity.machine import Machine
from ops.running_server import RunningServer

__all__ = ["RealCell", "RealLoad", "figures_of", "measure_cells", "report_cells"]

_PATIENCE_S = 30.0
_NUM_EACH = 2  # requests to each model before a server is measured
_POLICIES = (SharingPolicy.ELASTIC, SharingPolicy.STATIC)


@dataclass(frozen=True, slots=True)
class RealLoad:
    """The cells, and what is run in them.

    Attributes:
        arrangement: the models and their memory.
        machine: the simulation's, whose number of resident models and wake are replaced.
        trace: a trace's settings, whose rate is replaced.
        cells: budgets, each with a load of the grid, as its share (``LOADS``) and in requests per second.
        num_threads: threads that torch computes with; None leaves the engine's own choice.
    """

    arrangement: Arrangement
    machine: Machine
    trace: TraceSpec
    cells: tuple[tuple[Budget, float, float], ...]
    num_threads: int | None = None

    @property
    def targets(self) -> Targets:
        return Targets(self.machine.ttft_target_s, self.machine.tpot_target_s)


@dataclass(frozen=True, slots=True)
class RealCell:
    """One budget and load under one policy.

    Attributes:
        load: as a share of the requests per second that fill the KV.
        simulated: share attained in virtual time.
        wake_s: mean of the wakes that the server measured; 0 if there were none.
    """

    budget: Budget
    load: float
    load_per_s: float
    policy: SharingPolicy
    summary: Summary
    simulated: float
    wake_s: float

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the share attained, if requests were independent of each other."""
        return share_interval(self.summary.attainment, self.summary.num_requests)

    @property
    def is_as_simulated(self) -> bool:
        return is_as_expected(self.summary.attainment, self.summary.num_requests, self.simulated)


def measure_cells(load: RealLoad, scratch: Path, traces: Path, show: Callable[[str], None]) -> list[RealCell]:
    """Measures all cells, the servers of each budget beside each other and only one at a time under load.

    Args:
        scratch: folder for the servers' data.
        traces: folder that the traces are written to.
        show: called with a line for each measurement.
    """
    found: list[RealCell] = []
    for budget in Budget:
        loads = {share: load_per_s for each, share, load_per_s in load.cells if each is budget}
        with ExitStack() as stack:
            servers = {
                policy: stack.enter_context(_server(load, scratch, budget, policy))
                for policy in (_POLICIES if loads else ())
            }
            for server in servers.values():
                _warm_up(server, load.trace)
            for share, load_per_s in loads.items():
                spec = replace(load.trace, requests_per_s=load_per_s)
                drawn = draw_trace(spec)
                write_trace(traces / f"{budget.value}-{share:g}.jsonl", drawn)
                for policy, server in servers.items():
                    found.append(_cell(load, budget, share, policy, server, spec, drawn))
                    show(_line(found[-1]))
    return found


def _server(load: RealLoad, scratch: Path, budget: Budget, policy: SharingPolicy) -> RunningServer:
    name = f"{budget.value}-{policy.value}"
    config = scratch / f"{name}.toml"
    write_config(load.arrangement, budget, policy, load.targets, config, load.num_threads)
    return RunningServer(scratch / name, {}, config=config)


def _warm_up(server: RunningServer, trace: TraceSpec) -> None:
    """Sends requests one at a time, to the models that the server serves in turn and to the most popular one last, so
    that everything is in the host cache, and pages have been touched."""
    served = {each["name"] for each in server.status()["deployments"]}
    in_turn = [name for name in reversed(trace.models) if name in served]
    drawn = draw_trace(replace(trace, requests_per_s=100.0, seed=trace.seed + 1))
    for index, request in enumerate(drawn[: _NUM_EACH * len(in_turn)]):
        _replay(server, [replace(request, at_s=0.0, model=in_turn[index % len(in_turn)])])


def _replay(server: RunningServer, requests: Sequence[TraceRequest]) -> list[Timing]:
    return asyncio.run(replay(server.grpc_target, requests, _PATIENCE_S))


def _cell(
    load: RealLoad,
    budget: Budget,
    share: float,
    policy: SharingPolicy,
    server: RunningServer,
    spec: TraceSpec,
    drawn: Sequence[TraceRequest],
) -> RealCell:
    seconds_before, num_before = server.transitions("waking")
    summary = summarize(_replay(server, drawn), load.targets, spec.duration_s)
    seconds, num = server.transitions("waking")
    wake_s = (seconds - seconds_before) / max(1, num - num_before)
    machine = replace(load.machine, num_resident=load.arrangement.num_models(budget), wake_s=wake_s)
    simulated, _ = simulate(drawn, spec, policy, machine)
    return RealCell(budget, share, spec.requests_per_s, policy, summary, simulated, wake_s)


def _line(cell: RealCell) -> str:
    summary = cell.summary
    return (
        f"{cell.budget.value} {cell.load_per_s:.2f}/s {cell.policy.value}: {summary.attainment:.3f} of "
        f"{summary.num_requests} attained, {cell.simulated:.3f} simulated; TTFT p99 {summary.ttft_p99_s:.2f} s"
    )


def figures_of(cells: Sequence[RealCell]) -> dict[str, float]:
    """How many measurements are unlike the simulation, and how elastic compares with static in each cell. Seconds to
    the first token are compared where static refuses nobody."""
    figures = {"cells_unlike_simulation": float(sum(not each.is_as_simulated for each in cells))}
    by_cell: dict[tuple[Budget, float], Mapping[SharingPolicy, Summary]] = {}
    for each in cells:
        key = (each.budget, each.load)
        by_cell[key] = {**by_cell.get(key, {}), each.policy: each.summary}
    for (budget, load), summaries in by_cell.items():
        elastic, static = (summaries[policy] for policy in _POLICIES)
        name = f"{budget.value}_{load:g}"
        figures[f"goodput_elastic_over_static_{name}"] = elastic.attainment / max(static.attainment, 1e-3)
        if budget is Budget.ALL:
            figures[f"ttft_p99_static_over_elastic_{name}"] = static.ttft_p99_s / elastic.ttft_p99_s
    return figures


def report_cells(report: Report, load: RealLoad, cells: Sequence[RealCell]) -> None:
    """Adds the table of cells, and what was measured."""
    arrangement, trace, targets = load.arrangement, load.trace, load.targets
    report.text(
        f"## On real servers\n\nTraces of {trace.duration_s:g} s with seed {trace.seed}, replayed through the gRPC "
        f"door; the models in {arrangement.precision} with random weights. Targets as in virtual time: "
        f"{targets.ttft_s:.3f} s and {targets.tpot_s:.4f} s. Beside each share its 95 % interval as if requests were "
        "independent (bursts make it wider), and what the simulation says of the same trace with the wakes that the "
        "server measured. p99 is over all requests; one that was refused or given up counts with the time that it "
        "had waited, which is short where it was refused. Where only two models fit, static serves the two "
        "most popular ones and refuses the third."
    )
    columns = ("num_requests", "attainment", "ttft_p50_s", "ttft_p99_s", "tpot_p99_s")
    report.table(
        ["budget", "load", "requests/s", "policy", *columns, "95 %", "simulated", "wake_s"],
        [
            [
                each.budget.value,
                f"{each.load:g}",
                f"{each.load_per_s:.2f}",
                each.policy.value,
                *(getattr(each.summary, column) for column in columns),
                "{:.3f} to {:.3f}".format(*each.interval),
                f"{each.simulated:.3f}",
                each.wake_s,
            ]
            for each in cells
        ],
    )
    report.data("real", [{**asdict(each.summary), "simulated": each.simulated} for each in cells])
