"""Fairness between tenants of one device, in virtual time: what a flood costs the others, how evenly service goes.

``mooring bench fairness --out DIR``. A tenant sends twenty times its share, and the others' seconds to the first
token are compared with those where it sends just its share. Then two tenants always have requests waiting, and the
largest difference of what they have had is compared with the bound that docs/scheduling.md states.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.intervals import mean_ratio
from benchmarks.processes import run_all
from benchmarks.random_models import SMALL_SHAPE, TINY_SHAPE, make_random_models, native_precision
from benchmarks.report import Report
from benchmarks.sharing_policies import Arrangement
from benchmarks.slo.benchmark import slo_machine
from benchmarks.slo.simulated import PATIENCE_S, SloGrid, find_capacity
from benchmarks.slo.workload import TenantKind, TenantWorkload
from benchmarks.step_costs import DRAWN_S, filling_per_s, measure_step_costs
from benchmarks.traces import TraceSpec, draw_trace
from memory_manager.config import PlannerConfig
from memory_manager.policy.device_queue import QueuePolicy
from memory_manager.policy.step_model import StepCosts
from ops.capacity.machine import Machine, SimulatedModel, SimulatedRequest
from ops.capacity.policies import Elastic
from ops.capacity.simulation import Simulation

__all__ = [
    "FairnessLoad",
    "FairnessTrace",
    "FloodResult",
    "GapResult",
    "figures_of",
    "main",
    "run_flood",
    "run_gap",
]

MODELS = ("popular", "middling", "rare")
_POLICIES = (QueuePolicy.SLO, QueuePolicy.FCFS)
_NUM_TENANTS = 4
_FLOOD_TIMES = 20.0
_MIX_LOAD = 0.7
"""Requests per second of all tenants without the flood, as a share of the capacity."""

_BACKLOG_LOAD = 3.0
_WEIGHTS = ((1.0, 1.0), (2.0, 1.0))
_PROMPT_TOKENS, _OUTPUT_TOKENS = (32, 64), (32, 128)
_PAIR = ("first", "second")
_FLOODER = "tenant-0"
_UNBOUNDED = 10**9
_MODEL_LEN = 320


@dataclass(frozen=True, slots=True)
class FairnessLoad:
    """Amounts of what is simulated.

    Attributes:
        shape: config.json of the models.
        num_requests: expected of all tenants without the flood, in each trace.
        num_backlogged: requests of two tenants that always have some waiting.
        num_seeds: traces of each kind.
        kv_tokens: tokens of KV.
        is_quick: whether a rough capacity is enough.
    """

    shape: dict[str, object]
    num_requests: int = 600
    num_backlogged: int = 1500
    num_seeds: int = 8
    kv_tokens: int = 3200
    is_quick: bool = False

    @classmethod
    def full(cls) -> FairnessLoad:
        """Models of 25 million parameters with a KV head for each query head."""
        return cls({**SMALL_SHAPE, "num_key_value_heads": SMALL_SHAPE["num_attention_heads"]})

    @classmethod
    def quick(cls) -> FairnessLoad:
        """A tiny model and short traces: shows whether the benchmark works, not how well anything does."""
        return cls(dict(TINY_SHAPE), 80, 60, num_seeds=2, is_quick=True)


@dataclass(frozen=True, slots=True)
class FloodResult:
    """One trace under one policy, without the flood and with it.

    Attributes:
        quiet_p99_s, flooded_p99_s: 99th percentiles of the seconds to a first token, over the requests of all tenants
            but the one that floods.
        flooder_share: of the device's seconds that the flood had.
    """

    policy: QueuePolicy
    quiet_p99_s: float
    flooded_p99_s: float
    flooder_share: float


@dataclass(frozen=True, slots=True)
class GapResult:
    """Two tenants that always had requests waiting.

    Attributes:
        weights: of both.
        gap_s: largest difference of their service, each divided by its weight, in seconds of the device.
        bound_s: the bound on it.
        service_ratio: seconds that the first had over those of the second.
    """

    weights: tuple[float, float]
    gap_s: float
    bound_s: float
    service_ratio: float


@dataclass(frozen=True, slots=True)
class FairnessTrace:
    """One trace.

    Attributes:
        num_requests: expected, without what a flood adds.
        per_s: requests per second of all tenants, without what a flood adds.
        weights: of the two tenants that always have requests waiting.
    """

    machine: Machine
    num_requests: int
    per_s: float
    seed: int
    policy: QueuePolicy = QueuePolicy.SLO
    weights: tuple[float, float] = (1.0, 1.0)


def run_flood(job: FairnessTrace) -> FloodResult:
    """Runs the mix of one seed twice: a tenant sends its share, and then twenty times as much."""
    duration_s = job.num_requests / job.per_s
    p99_s, share = [], 0.0
    for times in (1.0, _FLOOD_TIMES):
        rates = {f"tenant-{number}": job.per_s / _NUM_TENANTS for number in range(_NUM_TENANTS)}
        rates[_FLOODER] *= times
        requests = _draw(job.machine, rates, duration_s, job.seed)
        simulation = Simulation(_unbounded(job), len(MODELS), _elastic(job.machine))
        simulation.run(requests, PATIENCE_S)
        ended_s = duration_s + PATIENCE_S
        p99_s.append(
            float(
                np.percentile(
                    [
                        (ended_s if each.first_at_s is None else each.first_at_s) - each.at_s
                        for each in requests
                        if each.tenant != _FLOODER
                    ],
                    99,
                )
            )
        )
        services_s = simulation.admission.counters.services_s()
        share = services_s[_FLOODER] / sum(services_s.values())
    return FloodResult(job.policy, p99_s[0], p99_s[1], share)


class _Watch:
    """The server's own chooser, and what two tenants have had while both had requests waiting.

    Attributes:
        gap_s: largest difference of their counts so far.
        num_held: most requests that the worker had.
        num_running: most of one model in its batch.
    """

    def __init__(self, chooser: Elastic) -> None:
        self._chooser = chooser
        self.gap_s = 0.0
        self.num_held = self.num_running = 0

    def begin(self, simulation: Simulation) -> None:
        self._chooser.begin(simulation)

    def arrived(self, simulation: Simulation, model: SimulatedModel) -> None:
        self._chooser.arrived(simulation, model)

    def plan(self, simulation: Simulation) -> None:
        """Looks at the counts after each arrival and each end, and lets the chooser plan."""
        models = simulation.models
        self.num_held = max(self.num_held, sum(len(each.running) + len(each.waiting) for each in models))
        self.num_running = max(self.num_running, *(len(each.running) for each in models))
        if all(any(each.tenant == tenant for each in simulation.admission.queue) for tenant in _PAIR):
            first_s, second_s = (simulation.admission.counters.of(tenant) for tenant in _PAIR)
            self.gap_s = max(self.gap_s, abs(first_s - second_s))
        self._chooser.plan(simulation)


def run_gap(job: FairnessTrace) -> GapResult:
    """Runs two tenants, each of which sends more than its share all the time, up to the last arrival."""
    machine = job.machine
    rates = dict.fromkeys(_PAIR, job.per_s / 2)
    requests = _draw(machine, rates, job.num_requests / job.per_s, job.seed)
    for each in requests:
        each.deadline_s = each.tpot_target_s = math.inf  # all are in time
        each.weight = job.weights[_PAIR.index(each.tenant)]
    watch = _Watch(_elastic(machine))
    simulation = Simulation(_unbounded(job), len(MODELS), watch)
    simulation.run(requests, 0.0)
    largest_s = max(
        _least_seconds(machine.costs, each, watch.num_running)
        for each in requests
        if each.end_at_s is not None
    )
    served_s = [
        weight * simulation.admission.counters.of(tenant)
        for tenant, weight in zip(_PAIR, job.weights, strict=True)
    ]
    bound_s = 2 * watch.num_held * largest_s / min(job.weights)
    return GapResult(job.weights, watch.gap_s, bound_s, served_s[0] / served_s[1])


def _least_seconds(costs: StepCosts, request: SimulatedRequest, num_running: int) -> float:
    """Seconds of the device that a request has had at least, if no step had more than so many sequences."""
    token_s = costs.decode_s + costs.step_s / num_running
    return request.num_prompt * costs.prefill_token_s + request.total_output * token_s


def _draw(
    machine: Machine, rates: Mapping[str, float], duration_s: float, seed: int
) -> list[SimulatedRequest]:
    """Requests of tenants without a class, at so many per second each. What one sends changes none of the others'."""
    drawn = []
    for number, (tenant, per_s) in enumerate(rates.items()):
        spec = TraceSpec(
            MODELS, per_s, duration_s, 2, 0.7, 1.0, 0.0, _PROMPT_TOKENS, _OUTPUT_TOKENS, 100 * seed + number
        )
        drawn += [(tenant, each) for each in draw_trace(spec)]
    drawn.sort(key=lambda each: each[1].at_s)
    return [
        SimulatedRequest(
            str(MODELS.index(each.model)),
            number,
            each.at_s,
            each.at_s + machine.ttft_target_s,
            machine.tpot_target_s,
            tenant=tenant,
            num_prompt=len(each.prompt_token_ids),
            total_output=each.max_tokens,
        )
        for number, (tenant, each) in enumerate(drawn)
    ]


def _unbounded(job: FairnessTrace) -> Machine:
    return replace(job.machine, queue=job.policy, max_waiting=_UNBOUNDED)


def _elastic(machine: Machine) -> Elastic:
    return Elastic(PlannerConfig(ttft_target_s=machine.ttft_target_s, tpot_target_s=machine.tpot_target_s))


def figures_of(floods: Sequence[FloodResult], gaps: Sequence[GapResult]) -> dict[str, float]:
    """The figures: ratios are means over the seeds, the gap's is the largest of any seed and weights."""
    ratios = _flood_ratios(floods)
    figures = {}
    for policy, suffix in ((QueuePolicy.SLO, ""), (QueuePolicy.FCFS, "_fcfs")):
        ratio, half = ratios[policy]
        figures[f"victim_ttft_p99_ratio{suffix}"] = ratio
        figures[f"victim_ttft_p99_ratio{suffix}_half_interval"] = half
    return {**figures, "service_gap_over_bound": max(each.gap_s / each.bound_s for each in gaps)}


def _flood_ratios(floods: Sequence[FloodResult]) -> dict[QueuePolicy, tuple[float, float]]:
    return {
        policy: mean_ratio(
            [each.flooded_p99_s for each in floods if each.policy is policy],
            [each.quiet_p99_s for each in floods if each.policy is policy],
        )
        for policy in _POLICIES
    }


def main(out: Path, load: FairnessLoad, show: Callable[[str], None]) -> dict[str, float]:
    """Simulates everything and writes the report; returns the figures.

    Args:
        show: called with a line for each trace as it is known.
    """
    report = Report(out, "Fairness between tenants of one device")
    tenant = TenantKind("tenant", 1.0, None, None, _OUTPUT_TOKENS)
    workload = TenantWorkload(MODELS, 2, _PROMPT_TOKENS, tenants=(tenant,))
    with tempfile.TemporaryDirectory(prefix="mooring-bench-") as name:
        precision = native_precision()
        folders = make_random_models(Path(name), load.shape, MODELS, precision)
        arrangement = Arrangement.of(folders, precision, _MODEL_LEN, load.kv_tokens // _MODEL_LEN)
        drawn = [each.request for each in workload.draw(1.0, DRAWN_S, 0)]
        costs = measure_step_costs(arrangement, drawn, Path(name))
    machine = slo_machine(costs, workload, load.kv_tokens)
    guess_per_s = filling_per_s(costs, len(MODELS), load.kv_tokens, workload.num_prompt, workload.num_output)
    grid = SloGrid(machine, workload, guess_per_s)
    capacity_per_s = find_capacity(grid.quick() if load.is_quick else grid)
    show(f"capacity: {capacity_per_s:.3f} requests/s")
    mix = FairnessTrace(machine, load.num_requests, _MIX_LOAD * capacity_per_s, 0)
    floods = []
    jobs = [replace(mix, seed=seed, policy=policy) for policy in _POLICIES for seed in range(load.num_seeds)]
    for flood in run_all(run_flood, jobs):
        floods.append(flood)
        show(
            f"{flood.policy.value}: p99 {flood.quiet_p99_s:.3f} s, with the flood {flood.flooded_p99_s:.3f} s"
        )
    backlog = FairnessTrace(machine, load.num_backlogged, _BACKLOG_LOAD * capacity_per_s, 0)
    gaps = []
    jobs = [replace(backlog, seed=seed, weights=pair) for pair in _WEIGHTS for seed in range(load.num_seeds)]
    for gap in run_all(run_gap, jobs):
        gaps.append(gap)
        show(f"weights {gap.weights}: gap {gap.gap_s:.2f} s, bound {gap.bound_s:.2f} s")
    _report(report, load, machine, capacity_per_s, floods, gaps)
    figures = {"capacity_per_s": capacity_per_s, **figures_of(floods, gaps)}
    for figure, value in figures.items():
        report.figure(figure, value)
    report.write()
    return figures


def _report(
    report: Report,
    load: FairnessLoad,
    machine: Machine,
    capacity_per_s: float,
    floods: Sequence[FloodResult],
    gaps: Sequence[GapResult],
) -> None:
    costs = machine.costs
    report.text(
        f"In virtual time, with steps as measured on the torch engine: {1e3 * costs.step_s:.2f} ms, "
        f"{1e3 * costs.decode_s:.3f} ms for each decode and {1e3 * costs.prefill_token_s:.4f} ms for each token of a "
        f"prefill. Three models, all resident, {machine.kv_tokens} tokens of KV, a queue without a bound. Tenants "
        f"have no class: {machine.ttft_target_s:.3f} s to the first token and {machine.tpot_target_s:.4f} s for each "
        f"one after it, and nobody is refused. Capacity: {capacity_per_s:.3f} requests per second, the most of which "
        "first come, first served, completes 98 % by the end of a trace."
    )
    report.text(
        f"## A flood\n\n{load.num_seeds} traces of {load.num_requests} requests of {_NUM_TENANTS} tenants of equal "
        f"weight, at {_MIX_LOAD:g} times the capacity; and the same with one tenant at {_FLOOD_TIMES:g} times its "
        "rate. p99 of the seconds to the first token over the requests of the others, medians over the traces; the "
        "ratio is a mean over them, with half of its 95 % interval."
    )
    ratios = _flood_ratios(floods)
    rows = []
    for policy in _POLICIES:
        found = [each for each in floods if each.policy is policy]
        rows.append(
            [
                policy.value,
                statistics.median(each.quiet_p99_s for each in found),
                statistics.median(each.flooded_p99_s for each in found),
                "{:.3f} ± {:.3f}".format(*ratios[policy]),
                f"{statistics.fmean(each.flooder_share for each in found):.3f}",
            ]
        )
    report.table(["policy", "p99, s", "with the flood", "ratio", "the flood's part of the service"], rows)
    report.text(
        f"## Service\n\nTwo tenants without targets, together at {_BACKLOG_LOAD:g} times the capacity, in traces of "
        f"{load.num_backlogged} requests. The gap is the largest difference of what they have had, in seconds of the "
        "device for each unit of weight, while both had requests waiting. The bound is twice the seconds of the "
        "largest request, over the smaller weight, for each request that the worker had at once; of the largest "
        "request the least counts that it can have had, which makes the bound smaller than it is."
    )
    report.table(
        [
            "weights",
            "largest gap, s",
            "its bound, s",
            "gap / bound, at most",
            "service of the first / the second",
        ],
        [
            [
                "{:g} : {:g}".format(*pair),
                max(each.gap_s for each in own),
                min(each.bound_s for each in own),
                f"{max(each.gap_s / each.bound_s for each in own):.3f}",
                f"{statistics.fmean(each.service_ratio for each in own):.3f}",
            ]
            for pair in _WEIGHTS
            if (own := [each for each in gaps if each.weights == pair])
        ],
    )
    report.data("floods", [{**asdict(each), "policy": each.policy.value} for each in floods])
    report.data("gaps", [asdict(each) for each in gaps])
