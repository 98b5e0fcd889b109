"""The queue's policies in virtual time, over loads from half to three times what the device has capacity for."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.processes import run_all
from benchmarks.replay import Targets
from benchmarks.slo.judged import Course, JudgedRun, judge
from benchmarks.slo.workload import NOTHING_PROMISED, TenantRequest, TenantWorkload, claims
from memory_manager.config import PlannerConfig
from memory_manager.policy.device_queue import QueuePolicy
from ops.capacity.machine import Machine
from ops.capacity.policies import Elastic
from ops.capacity.simulation import Simulation

__all__ = [
    "BOUNDED_LOAD",
    "LOADS",
    "PATIENCE_S",
    "PolicyCell",
    "SloGrid",
    "Variant",
    "find_capacity",
    "run_grid",
    "run_trace",
]

LOADS = (0.5, 0.8, 1.0, 1.2, 1.5, 3.0)
"""Requests per second, as shares of the capacity."""

BOUNDED_LOAD = 1.2
"""The load at which the others are tried with bounded queues too."""

PATIENCE_S = 30.0
"""Seconds after a trace's last arrival for which its requests with a target may still end."""

_BOUNDS = (1, 2, 4, 8, 16, 32)
_COMPLETED_GOAL = 0.98
_UNBOUNDED = 10**9


@dataclass(frozen=True, slots=True)
class Variant:
    """A policy of the queue.

    Attributes:
        max_waiting: requests that may wait for one model; more are refused.
        is_bounded: whether that is few, and the variant is tried at one load alone.
    """

    policy: QueuePolicy
    max_waiting: int
    is_bounded: bool = False

    @property
    def name(self) -> str:
        return f"{self.policy.value} of {self.max_waiting}" if self.is_bounded else self.policy.value


@dataclass(frozen=True, slots=True)
class SloGrid:
    """Amounts of what is simulated.

    Attributes:
        machine: the device, on which all models are resident.
        guess_per_s: a guess at the capacity, right within a factor of 2.
        num_requests: expected in each trace.
        num_seeds: traces of each load.
        num_capacity_seeds: traces by which each guess at the capacity is judged.
        num_halvings: of the logarithm of the factor of 4 within which the capacity is sought.
    """

    machine: Machine
    workload: TenantWorkload
    guess_per_s: float
    num_requests: int = 1500
    num_seeds: int = 8
    num_capacity_seeds: int = 4
    num_halvings: int = 7
    loads: tuple[float, ...] = LOADS
    bounds: tuple[int, ...] = _BOUNDS

    def quick(self) -> SloGrid:
        """A few short cells: shows whether it works."""
        return replace(
            self,
            num_requests=60,
            num_seeds=2,
            num_capacity_seeds=1,
            num_halvings=2,
            loads=(1.0, BOUNDED_LOAD, 3.0),
            bounds=(1,),
        )

    @property
    def capacity_duration_s(self) -> float:
        """Seconds of the traces by which the capacity is found."""
        return self.num_requests / self.guess_per_s

    def variants(self, load: float) -> list[Variant]:
        """All that are tried at a load."""
        found = [Variant(policy, self.machine.max_waiting) for policy in QueuePolicy]
        if load == BOUNDED_LOAD:
            found += [
                Variant(policy, bound, is_bounded=True)
                for policy in QueuePolicy
                if policy is not QueuePolicy.SLO
                for bound in self.bounds
            ]
        return found


@dataclass(frozen=True, slots=True)
class PolicyCell:
    """One load and policy.

    Attributes:
        runs: one for each seed.
    """

    load: float
    variant: Variant
    runs: tuple[JudgedRun, ...]

    def mean(self, figure: Callable[[JudgedRun], float]) -> float:
        """Mean of a figure over the seeds."""
        return statistics.fmean(map(figure, self.runs))

    @property
    def goodputs_per_s(self) -> list[float]:
        return [each.goodput_per_s for each in self.runs]

    def attainment(self, tenant: str) -> float:
        return self.mean(lambda run: run.attainment(tenant))


def run_trace(
    drawn: Sequence[TenantRequest],
    duration_s: float,
    machine: Machine,
    models: Sequence[str],
    targets: Mapping[str, Targets],
    best_effort: Targets = NOTHING_PROMISED,
) -> list[Course]:
    """Runs a trace in virtual time with all models resident; see ``claims`` for the targets."""
    requests = claims(drawn, models, targets, best_effort)
    config = PlannerConfig(ttft_target_s=machine.ttft_target_s, tpot_target_s=machine.tpot_target_s)
    simulation = Simulation(machine, len(models), Elastic(config))
    simulation.run(requests, PATIENCE_S)
    ended_s = duration_s + PATIENCE_S
    courses = []
    for each, request in zip(drawn, requests, strict=True):
        first_s = None if request.first_at_s is None else request.first_at_s - request.at_s
        courses.append(
            Course(
                tenant=each.tenant,
                is_refused=request.is_refused,
                meets=request.meets,
                first_s=first_s,
                waited_s=ended_s - request.at_s if first_s is None else first_s,
                ended_at_s=request.end_at_s,
                predicted_s=request.likely_s if request.likely_s < math.inf else None,
                ttft_target_s=targets.get(each.tenant.name, NOTHING_PROMISED).ttft_s,
            )
        )
    return courses


@dataclass(frozen=True, slots=True)
class _Job:
    grid: SloGrid
    variant: Variant
    per_s: float
    duration_s: float
    seed: int


def _run(job: _Job) -> tuple[JudgedRun, int, float]:
    """One trace, with the number of its requests and the seconds that it took."""
    began_s = time.process_time()
    grid = job.grid
    machine = replace(grid.machine, queue=job.variant.policy, max_waiting=job.variant.max_waiting)
    drawn = grid.workload.draw(job.per_s, job.duration_s, job.seed)
    targets = grid.workload.targets(machine.costs)
    courses = run_trace(drawn, job.duration_s, machine, grid.workload.models, targets)
    return judge(courses, job.duration_s), len(drawn), time.process_time() - began_s


def find_capacity(grid: SloGrid, num_processes: int = 2) -> float:
    """The most requests per second of which first come, first served completes 98 % by the end of a trace, if nobody
    is refused: by bisection of the logarithm, all traces of one length."""
    first_come = Variant(QueuePolicy.FCFS, _UNBOUNDED)
    low, high = grid.guess_per_s / 2, grid.guess_per_s * 2
    for _ in range(grid.num_halvings):
        middle = math.sqrt(low * high)
        jobs = [
            _Job(grid, first_come, middle, grid.capacity_duration_s, seed)
            for seed in range(grid.num_capacity_seeds)
        ]
        runs = [run for run, *_ in run_all(_run, jobs, num_processes)]
        completed = sum(sum(each.completed.values()) for each in runs)
        if completed >= _COMPLETED_GOAL * sum(sum(each.num.values()) for each in runs):
            low = middle
        else:
            high = middle
    return low


def run_grid(
    grid: SloGrid, capacity_per_s: float, show: Callable[[str], None], num_processes: int = 2
) -> tuple[list[PolicyCell], float]:
    """Runs all cells, every variant of a load on the same traces; returns them with the number of simulated requests
    per second of a core.

    Args:
        show: called with a line for each cell.
    """
    todo = [(load, variant) for load in grid.loads for variant in grid.variants(load)]
    jobs = [
        _Job(grid, variant, load * capacity_per_s, grid.num_requests / (load * capacity_per_s), seed)
        for load, variant in todo
        for seed in range(grid.num_seeds)
    ]
    cells: list[PolicyCell] = []
    runs: list[JudgedRun] = []
    num_requests, busy_s = 0, 0.0
    for run, num, seconds in run_all(_run, jobs, num_processes):
        runs.append(run)
        num_requests, busy_s = num_requests + num, busy_s + seconds
        if len(runs) == grid.num_seeds:
            cells.append(PolicyCell(*todo[len(cells)], tuple(runs)))
            runs = []
            show(_line(cells[-1], grid.workload))
    return cells, num_requests / busy_s


def _line(cell: PolicyCell, workload: TenantWorkload) -> str:
    attained = ", ".join(f"{each.name} {cell.attainment(each.name):.3f}" for each in workload.tenants)
    return f"{cell.load:g} x capacity, {cell.variant.name}: {cell.mean(_goodput_per_s):.3f}/s; {attained}"


def _goodput_per_s(run: JudgedRun) -> float:
    return run.goodput_per_s
