"""Sharing policies in virtual time: the grid of budgets, wakes and loads that real servers would take days for.

The policies are the server's own (``ops.capacity.simulation``), with steps that cost what the torch engine's cost on
this machine. Every policy of a cell gets the same traces, one for each seed.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.intervals import mean_ratio
from benchmarks.processes import run_all
from benchmarks.replay import Targets
from benchmarks.report import Report
from benchmarks.sharing_policies import SharingPolicy
from benchmarks.step_costs import filling_per_s, mean_lengths
from benchmarks.traces import TraceRequest, TraceSpec, draw_trace
from memory_manager.config import PlannerConfig
from memory_manager.policy.step_model import StepCosts
from ops.capacity.machine import Machine, SimulatedRequest
from ops.capacity.policies import Elastic, Static, SwapOneAtATime
from ops.capacity.simulation import ResidencyPolicy, Simulation

__all__ = [
    "LOADS",
    "CellResult",
    "SimulatedLoad",
    "grid_figures",
    "highest_attaining",
    "quick_grid",
    "report_grid",
    "simulate",
    "simulate_grid",
    "whole_grid",
]

_FULL_GOAL, _STATIC_GOAL = 0.99, 0.90
LOADS = (0.35, 0.55, 0.75, 0.95, 1.15, 1.5)
"""Requests per second, as shares of those that fill the KV."""

_PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class SimulatedLoad:
    """A grid of cells.

    Attributes:
        machine: the device, whose number of resident models and wakes are replaced.
        trace: a trace's settings, whose rate, length and seed are replaced.
        num_requests: expected in each trace.
        num_seeds: traces of each cell.
        num_resident: budgets, as numbers of models that fit.
        wakes: seconds of a wake, as multiples of the target for first tokens.
        loads_per_s: requests per second.
    """

    machine: Machine
    trace: TraceSpec
    num_requests: int
    num_seeds: int
    num_resident: tuple[int, ...]
    wakes: tuple[float, ...]
    loads_per_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class CellResult:
    """One budget, wake and load.

    Attributes:
        attainment: shares of requests that met their targets, by policy, one for each seed.
        ttft_p99_s: medians over the seeds of the 99th percentile of seconds to the first token.
    """

    num_resident: int
    wake: float
    load_per_s: float
    attainment: dict[SharingPolicy, tuple[float, ...]]
    ttft_p99_s: dict[SharingPolicy, float]

    def mean(self, policy: SharingPolicy) -> float:
        return statistics.fmean(self.attainment[policy])

    def ratio(self, other: SharingPolicy) -> tuple[float, float]:
        """Mean of the elastic policy's goodput over another's, seed by seed, and half of its 95 % interval."""
        return mean_ratio(self.attainment[SharingPolicy.ELASTIC], self.attainment[other])


def simulate_grid(
    load: SimulatedLoad, show: Callable[[str], None], num_processes: int = 2
) -> tuple[list[CellResult], float]:
    """Runs all cells; returns them with the number of simulated requests per second of a core.

    Args:
        show: called with a line for each cell.
    """
    cells = list(itertools.product(load.num_resident, load.wakes, load.loads_per_s))
    results: list[CellResult] = []
    num_requests, busy_s = 0, 0.0
    for result, num, seconds in run_all(_run_cell, [(load, cell) for cell in cells], num_processes):
        results.append(result)
        num_requests, busy_s = num_requests + num, busy_s + seconds
        show(_line(result))
    return results, num_requests / busy_s


def _run_cell(job: tuple[SimulatedLoad, tuple[int, float, float]]) -> tuple[CellResult, int, float]:
    load, (num_resident, wake, load_per_s) = job
    machine = replace(load.machine, num_resident=num_resident, wake_s=wake * load.machine.ttft_target_s)
    attainment: dict[SharingPolicy, list[float]] = {policy: [] for policy in SharingPolicy}
    ttft_p99_s: dict[SharingPolicy, list[float]] = {policy: [] for policy in SharingPolicy}
    num_requests, began_s = 0, time.process_time()
    for seed in range(load.num_seeds):
        spec = replace(
            load.trace,
            requests_per_s=load_per_s,
            duration_s=load.num_requests / load_per_s,
            seed=seed,
            vocab_size=2,
        )
        drawn = draw_trace(spec)
        for policy in SharingPolicy:
            attained, p99_s = simulate(drawn, spec, policy, machine)
            num_requests += len(drawn)
            attainment[policy].append(attained)
            ttft_p99_s[policy].append(p99_s)
    result = CellResult(
        num_resident,
        wake,
        load_per_s,
        {policy: tuple(shares) for policy, shares in attainment.items()},
        {policy: statistics.median(seconds) for policy, seconds in ttft_p99_s.items()},
    )
    return result, num_requests, time.process_time() - began_s


def simulate(
    drawn: Sequence[TraceRequest], spec: TraceSpec, policy: SharingPolicy, machine: Machine
) -> tuple[float, float]:
    """Runs one trace; returns the share of its requests that met their targets, and the 99th percentile of seconds
    to the first token."""
    requests = [
        SimulatedRequest(
            str(spec.models.index(each.model)),
            number,
            each.at_s,
            each.at_s + machine.ttft_target_s,
            machine.tpot_target_s,
            num_prompt=len(each.prompt_token_ids),
            total_output=each.max_tokens,
        )
        for number, each in enumerate(drawn)
    ]
    Simulation(machine, len(spec.models), _made(policy, machine)).run(requests, _PATIENCE_S)
    given_up_s = spec.duration_s + _PATIENCE_S
    waits_s = [(given_up_s if each.first_at_s is None else each.first_at_s) - each.at_s for each in requests]
    attained = sum(each.meets for each in requests) / len(requests)
    return attained, float(np.percentile(waits_s, 99))


def _made(policy: SharingPolicy, machine: Machine) -> ResidencyPolicy:
    if policy is SharingPolicy.STATIC:
        return Static()
    if policy is SharingPolicy.SWAP:
        return SwapOneAtATime()
    return Elastic(PlannerConfig(ttft_target_s=machine.ttft_target_s, tpot_target_s=machine.tpot_target_s))


def _line(cell: CellResult) -> str:
    shares = ", ".join(f"{policy.value} {cell.mean(policy):.3f}" for policy in SharingPolicy)
    ratio, half = cell.ratio(SharingPolicy.STATIC)
    return (
        f"{cell.num_resident} fit, wake {cell.wake:g} x target, {cell.load_per_s:.2f}/s: {shares}; "
        f"elastic over static {ratio:.3f} +- {half:.3f}"
    )


def grid_figures(cells: Sequence[CellResult], num_models: int) -> dict[str, float]:
    """The figures that the cells give; those that they cannot give are left out."""
    static, swap = SharingPolicy.STATIC, SharingPolicy.SWAP
    figures = {
        "worst_elastic_over_static": min(each.ratio(static)[0] for each in cells),
        "cells_below_static": float(sum(sum(each.ratio(static)) < 0.99 for each in cells)),
        "cells_below_swap": float(sum(sum(each.ratio(swap)) < 0.99 for each in cells)),
    }
    wakes = sorted({each.wake for each in cells})
    everything = [each for each in cells if each.num_resident == num_models]
    middling = wakes[len(wakes) // 2]
    roomy = [each for each in everything if each.wake == middling]
    elastic_full, static_full = (
        _highest(roomy, policy, _FULL_GOAL) for policy in (SharingPolicy.ELASTIC, static)
    )
    if elastic_full is not None and static_full is not None:
        figures["goodput_elastic_over_static"] = elastic_full.load_per_s / static_full.load_per_s
        figures["goodput_elastic_over_swap"] = elastic_full.ratio(swap)[0]
    if (static_90 := _highest(roomy, static, _STATIC_GOAL)) is not None:
        p99_s = static_90.ttft_p99_s
        figures["ttft_p99_static_over_elastic"] = p99_s[static] / p99_s[SharingPolicy.ELASTIC]
    tight = [each for each in cells if each.num_resident == num_models - 1 and each.wake == wakes[0]]
    if (full := _highest(tight, SharingPolicy.ELASTIC, _FULL_GOAL)) is not None:
        figures["goodput_elastic_over_static_two_of_three"] = full.ratio(static)[0]
    if tight:
        peaks = [
            max(each.mean(policy) * each.load_per_s for each in tight)
            for policy in (SharingPolicy.ELASTIC, static)
        ]
        figures["peak_elastic_over_static_two_of_three"] = peaks[0] / peaks[1]
    return figures


def highest_attaining(attainment: Mapping[float, float], goal: float) -> float | None:
    """The highest load up to which every load attains ``goal``; None if the lowest does not.

    Args:
        attainment: shares of requests, by load.
    """
    found = None
    for load in sorted(attainment):
        if attainment[load] < goal:
            break
        found = load
    return found


def _highest(cells: Sequence[CellResult], policy: SharingPolicy, goal: float) -> CellResult | None:
    """The cell of the highest load up to which every load attains ``goal``; None if the lowest does not."""
    by_load = {each.load_per_s: each for each in cells}
    load = highest_attaining({load: each.mean(policy) for load, each in by_load.items()}, goal)
    return None if load is None else by_load[load]


def report_grid(
    report: Report, load: SimulatedLoad, cells: Sequence[CellResult], requests_per_s: float
) -> None:
    """Adds the table of cells, and what was simulated."""
    costs = load.machine.costs
    report.text(
        f"## In virtual time\n\n{load.num_seeds} traces of {load.num_requests} requests in each cell, the same for "
        f"every policy, at {requests_per_s:.0f} simulated requests per second of one core. A step costs "
        f"{1e3 * costs.step_s:.2f} ms, {1e3 * costs.decode_s:.3f} ms for each decode and "
        f"{1e3 * costs.prefill_token_s:.4f} ms for each token of a prefill, as measured on the torch engine; "
        f"{load.machine.kv_tokens} tokens of KV; targets {load.machine.ttft_target_s:.3f} s and "
        f"{load.machine.tpot_target_s:.4f} s. Ratios are means over the seeds, with half of their 95 % intervals."
    )
    rows = []
    for cell in cells:
        (ratio, half), (over_swap, _) = cell.ratio(SharingPolicy.STATIC), cell.ratio(SharingPolicy.SWAP)
        rows.append(
            [
                cell.num_resident,
                f"{cell.wake:g}",
                f"{cell.load_per_s:.2f}",
                *(f"{cell.mean(policy):.3f}" for policy in SharingPolicy),
                f"{ratio:.3f} ± {half:.3f}",
                f"{over_swap:.2f}",
            ]
        )
    report.table(
        [
            "models that fit",
            "wake, of the target",
            "requests/s",
            *(f"{each.value}" for each in SharingPolicy),
            "over static",
            "over swap",
        ],
        rows,
    )


def whole_grid(costs: StepCosts, trace: TraceSpec, kv_tokens: int, targets: Targets) -> SimulatedLoad:
    """Three budgets, three wakes, and six loads from a third of what the KV allows to well beyond it."""
    most_per_s = filling_per_s(costs, len(trace.models), kv_tokens, *mean_lengths(trace))
    machine = Machine(costs, len(trace.models), kv_tokens, 0.0, targets.ttft_s, targets.tpot_s)
    loads_per_s = tuple(round(share * most_per_s, 3) for share in LOADS)
    return SimulatedLoad(machine, trace, 1000, 8, (3, 2, 1), (0.1, 0.5, 2.0), loads_per_s)


def quick_grid(whole: SimulatedLoad) -> SimulatedLoad:
    """A few short cells: shows whether it works."""
    return replace(
        whole,
        num_requests=60,
        num_seeds=2,
        num_resident=(3, 2),
        wakes=(0.1,),
        loads_per_s=whole.loads_per_s[:2],
    )
