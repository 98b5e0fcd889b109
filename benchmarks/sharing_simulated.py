"""Sharing policies in virtual time: the grid of budgets, wakes and loads that real servers would take days for.

The policies are the server's own (``ops.capacity.simulation``), with steps that cost what the torch engine's cost on
this machine. Every policy of a cell gets the same traces, one for each seed.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context

import numpy as np

from benchmarks.engine_setup import LoadedEngine
from benchmarks.replay import Targets
from benchmarks.report import Report
from benchmarks.sharing_policies import SharingPolicy
from benchmarks.traces import TraceRequest, TraceSpec, draw_trace
from engines.api import SamplingParams, SequenceRequest
from memory_manager.config import PlannerConfig
from ops.capacity.machine import Machine, SimulatedRequest, StepCosts
from ops.capacity.policies import Elastic, Static, SwapOneAtATime
from ops.capacity.simulation import ResidencyPolicy, Simulation

__all__ = [
    "LOADS",
    "CellResult",
    "SimulatedLoad",
    "fit_step_costs",
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
_T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}  # of Student's t, by number of seeds


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
        pairs = zip(self.attainment[SharingPolicy.ELASTIC], self.attainment[other], strict=True)
        ratios = [elastic / max(theirs, 1e-3) for elastic, theirs in pairs]
        if len(ratios) < 2:
            return ratios[0], 0.0
        half = _T_95.get(len(ratios), 1.96) * statistics.stdev(ratios) / len(ratios) ** 0.5
        return statistics.fmean(ratios), half


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
    # Not forked: this process may have an engine with threads.
    with ProcessPoolExecutor(num_processes, get_context("spawn")) as pool:
        try:
            for result, num, seconds in pool.map(_run_cell, [load] * len(cells), cells):
                results.append(result)
                num_requests, busy_s = num_requests + num, busy_s + seconds
                show(_line(result))
        except BaseException:  # terminated
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return results, num_requests / busy_s


def _run_cell(load: SimulatedLoad, cell: tuple[int, float, float]) -> tuple[CellResult, int, float]:
    num_resident, wake, load_per_s = cell
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


def fit_step_costs(engines: Sequence[LoadedEngine], context: int, num_steps: int = 24) -> StepCosts:
    """Times steps of the engines, some with decodes alone, some with one prefill, and fits what each part costs. They
    take turns, as models of one worker do, so that each finds the caches full of another's weights.

    Args:
        context: tokens of each sequence that decodes, since attention reads them all.
    """
    rows, seconds = [], []
    rng = np.random.default_rng(0)

    def submit(engine: LoadedEngine, num_tokens: int, max_tokens: int) -> None:
        sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        prompt = rng.integers(0, engine.vocab_size, num_tokens).astype(np.int32)
        engine.submit(SequenceRequest(engine.next_sequence_id(), engine.replica_id, prompt, sampling))

    num_running = 0

    def timed() -> list[float]:
        nonlocal num_running
        times_s = []
        for engine in engines:
            began_s = time.perf_counter()
            num_running -= engine.step_and_count_finished()
            times_s.append(time.perf_counter() - began_s)
        return times_s

    for num_decodes in (1, 2, 4, 8, 12):
        num_prompt_steps = num_decodes + 1  # at most: each takes one prompt at least
        for engine in engines:
            for _ in range(num_decodes):
                submit(engine, context, num_prompt_steps + num_steps + 1)
        num_running = num_decodes * len(engines)
        for _ in range(num_prompt_steps):
            timed()
        rows.append((1, num_decodes, 0))
        seconds.append(statistics.median(itertools.chain(*(timed() for _ in range(num_steps)))))
        while num_running:
            timed()
    for num_tokens in (32, 64, 128, 256):
        times_s = []
        for _ in range(5):
            for engine in engines:
                submit(engine, num_tokens, 1)
            times_s += timed()
        rows.append((1, 0, num_tokens))
        seconds.append(statistics.median(times_s))
    weights = 1 / np.array(seconds)  # relative errors count
    solution = np.linalg.lstsq(np.array(rows) * weights[:, None], np.ones(len(rows)), rcond=None)[0]
    step_s, decode_s, prefill_token_s = np.maximum(solution, 1e-7).tolist()
    return StepCosts(step_s, decode_s, prefill_token_s)


def whole_grid(costs: StepCosts, trace: TraceSpec, kv_tokens: int, targets: Targets) -> SimulatedLoad:
    """Three budgets, three wakes, and six loads from a third of what the KV allows to well beyond it."""
    num_prompt, num_output = (
        statistics.fmean(bounds) for bounds in (trace.prompt_tokens, trace.output_tokens)
    )
    num_sequences = kv_tokens / (num_prompt + num_output)
    round_s = len(trace.models) * costs.step_s + num_sequences * costs.decode_s
    most_per_s = num_sequences / (num_output * round_s)
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
