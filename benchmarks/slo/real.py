"""Some loads on a real server, over HTTP, beside what the simulation says of the very same traces."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.intervals import is_as_expected, share_interval
from benchmarks.replay import Targets
from benchmarks.report import Report
from benchmarks.sharing_policies import Arrangement, Budget, SharingPolicy, write_config
from benchmarks.slo.client import TimedAnswer, send_all
from benchmarks.slo.figures import load_name
from benchmarks.slo.judged import Course, JudgedRun, judge, score_predictions
from benchmarks.slo.simulated import PATIENCE_S, run_trace
from benchmarks.slo.workload import NOTHING_PROMISED, TenantRequest, TenantWorkload
from benchmarks.step_costs import step_costs_of
from benchmarks.traces import write_trace
from memory_manager.policy.step_model import StepCosts
from ops.capacity.machine import Machine
from ops.running_server import RunningServer

__all__ = ["RealRun", "SloRealLoad", "figures_of_runs", "measure_runs", "report_runs"]

_NUM_EACH = 2  # requests to each model before anything is measured
_WARM_UP_LOAD = 0.8


@dataclass(frozen=True, slots=True)
class SloRealLoad:
    """Amounts of what is measured.

    Attributes:
        machine: the simulation's.
        capacity_per_s: requests per second.
        loads: as shares of the capacity.
        duration_s: of each trace.
        warm_up_s: of a trace before them, by which the server learns what its steps cost.
        num_threads: threads that torch computes with; None leaves the engine's own choice.
    """

    arrangement: Arrangement
    machine: Machine
    workload: TenantWorkload
    capacity_per_s: float
    loads: tuple[float, ...] = (0.8, 1.2, 3.0)
    duration_s: float = 75.0
    warm_up_s: float = 15.0
    seed: int = 0
    num_threads: int | None = None

    @property
    def best_effort(self) -> Targets:
        """The server's own targets, by which it orders requests that are promised nothing."""
        return Targets(self.machine.ttft_target_s, self.machine.tpot_target_s)


@dataclass(frozen=True, slots=True)
class RealRun:
    """One load.

    Attributes:
        costs: of steps, as the server had measured them at its end.
        simulated: of the same trace, with steps of these costs.
        refusals_s: seconds that each refusal took.
        num_wakes: models that the server woke or loaded meanwhile.
        errors: requests by what they ended with, of those that were neither refused nor finished.
    """

    load: float
    costs: StepCosts
    measured: JudgedRun
    simulated: JudgedRun
    courses: tuple[Course, ...]
    refusals_s: tuple[float, ...]
    num_wakes: int
    errors: Mapping[str, int]

    def is_as_simulated(self, tenant: str) -> bool:
        """Whether a tenant's attainment is within 5 points, or its 95 % interval, of the simulated."""
        num = self.measured.num[tenant]
        return is_as_expected(self.measured.attainment(tenant), num, self.simulated.attainment(tenant))


def measure_runs(
    load: SloRealLoad, scratch: Path, traces: Path, show: Callable[[str], None]
) -> list[RealRun]:
    """Measures each load on one server.

    Args:
        scratch: folder for the server's data.
        traces: folder that the traces are written to, a file for each load and tenant.
        show: called with a line for each measurement.
    """
    config = scratch / "slo.toml"
    write_config(
        load.arrangement, Budget.ALL, SharingPolicy.ELASTIC, load.best_effort, config, load.num_threads
    )
    runs = []
    with RunningServer(scratch / "slo", {}, config=config) as server:
        keys = _make_tenants(server, load)
        _warm_up(server, keys, load)
        for share in load.loads:
            drawn = load.workload.draw(share * load.capacity_per_s, load.duration_s, load.seed)
            for tenant in load.workload.tenants:
                own = [each.request for each in drawn if each.tenant is tenant]
                write_trace(traces / f"{share:g}-{tenant.name}.jsonl", own)
            runs.append(_run(server, keys, load, share, drawn))
            show(_line(runs[-1]))
    return runs


def _make_tenants(server: RunningServer, load: SloRealLoad) -> dict[str, str]:
    """Makes the tenants and their classes; returns the key of each."""
    targets = load.workload.targets(load.machine.costs)
    keys = {}
    for tenant in load.workload.tenants:
        keys[tenant.name] = server.new_key(tenant.name)
        if (promised := targets.get(tenant.name)) is not None:
            terms = {"ttft_target_s": promised.ttft_s, "tpot_target_s": promised.tpot_s}
            rank = {"priority": tenant.priority, "on_miss": "refuse"}
            server.admin("POST", "/slo-classes", {"name": tenant.name, **terms, **rank}).raise_for_status()
            server.admin("PATCH", f"/tenants/{tenant.name}", {"slo_class": tenant.name}).raise_for_status()
    return keys


def _warm_up(server: RunningServer, keys: Mapping[str, str], load: SloRealLoad) -> None:
    """Sends requests to each model, one at a time, and then a short trace."""
    drawn = load.workload.draw(_WARM_UP_LOAD * load.capacity_per_s, load.warm_up_s, load.seed + 1)
    for number, model in enumerate(load.workload.models * _NUM_EACH):
        each = drawn[number % len(drawn)]
        alone = TenantRequest(load.workload.tenants[-1], replace(each.request, at_s=0.0, model=model))
        _send(server, keys, [alone])
    _send(server, keys, drawn)


def _send(
    server: RunningServer, keys: Mapping[str, str], drawn: Sequence[TenantRequest]
) -> list[TimedAnswer]:
    return asyncio.run(send_all(server.http_url, keys, drawn, PATIENCE_S))


def _run(
    server: RunningServer,
    keys: Mapping[str, str],
    load: SloRealLoad,
    share: float,
    drawn: Sequence[TenantRequest],
) -> RealRun:
    targets = load.workload.targets(load.machine.costs)
    _, num_before = server.transitions("waking", "loading")
    answers = _send(server, keys, drawn)
    _, num_after = server.transitions("waking", "loading")
    courses = tuple(
        course_of(wanted, answer, targets.get(wanted.tenant.name, NOTHING_PROMISED))
        for wanted, answer in zip(drawn, answers, strict=True)
    )
    costs = step_costs_of(server)
    machine = replace(load.machine, costs=costs)
    simulated = run_trace(drawn, load.duration_s, machine, load.workload.models, targets, load.best_effort)
    unfinished = [each.error for each in answers if each.error and each.refused_in_s is None]
    return RealRun(
        share,
        costs,
        judge(courses, load.duration_s),
        judge(simulated, load.duration_s),
        courses,
        tuple(each.refused_in_s for each in answers if each.refused_in_s is not None),
        num_after - num_before,
        {error: unfinished.count(error) for error in sorted(set(unfinished))},
    )


def course_of(wanted: TenantRequest, answer: TimedAnswer, targets: Targets) -> Course:
    """The course of a request, as its client saw it."""
    has_ended = not answer.error
    in_time = answer.first_s is not None and answer.first_s <= targets.ttft_s
    return Course(
        tenant=wanted.tenant,
        is_refused=answer.refused_in_s is not None,
        meets=has_ended and in_time and answer.tpot_s <= targets.tpot_s,
        first_s=answer.first_s,
        waited_s=answer.end_s if answer.first_s is None else answer.first_s,
        ended_at_s=wanted.request.at_s + answer.end_s if has_ended else None,
        predicted_s=answer.predicted_s,
        ttft_target_s=targets.ttft_s,
    )


def figures_of_runs(runs: Sequence[RealRun]) -> dict[str, float]:
    """The figures of real servers; those that the runs cannot give are left out."""
    figures: dict[str, float] = {
        "tenants_unlike_simulation": float(
            sum(not run.is_as_simulated(tenant) for run in runs for tenant in run.measured.num)
        ),
        "wakes_real": float(sum(run.num_wakes for run in runs)),
    }
    for run in runs:
        load = load_name(run.load)
        figures |= {
            f"attainment_{tenant}_real_{load}": run.measured.attainment(tenant) for tenant in run.measured.num
        }
        figures[f"accepted_met_{load}"] = run.measured.accepted_met
    if refusals_s := [each for run in runs for each in run.refusals_s]:
        figures["refusal_ms_p99"] = 1e3 * float(np.percentile(refusals_s, 99))
    courses = [each for run in runs for each in run.courses if not each.is_refused]
    scores = score_predictions(courses)
    interactive = score_predictions([each for each in courses if each.tenant.is_interactive])
    return figures | {
        "prediction_within_25": scores.within,
        "prediction_mape": scores.mape,
        "prediction_within_25_interactive": interactive.within,
        "prediction_mape_interactive": interactive.mape,
    }


def report_runs(report: Report, load: SloRealLoad, runs: Sequence[RealRun]) -> None:
    """Adds the tables of what was measured, beside what was simulated."""
    report.text(
        f"## On a real server\n\nTraces of {load.duration_s:g} s with seed {load.seed}, streamed over HTTP; the "
        f"models in {load.arrangement.precision} with random weights. Each tenant has a class with its targets, "
        "priority 1 and `on_miss` `refuse`, but for the batch tenant, which has none and is ordered by the server's "
        f"own targets: {load.best_effort.ttft_s:.3f} s and {load.best_effort.tpot_s:.4f} s. Beside each share its "
        "95 % interval as if requests were independent, and what the simulation says of the same trace, if steps "
        "cost what they cost this server in the end: a machine that others use too is not as fast at every hour."
    )
    report.table(
        ["load", "tenant", "requests", "refused", "attained", "95 %", "simulated", "alike"],
        [
            [
                f"{run.load:g}",
                tenant,
                num,
                run.measured.refused[tenant],
                f"{run.measured.attainment(tenant):.3f}",
                "{:.3f} to {:.3f}".format(*share_interval(run.measured.attainment(tenant), num)),
                f"{run.simulated.attainment(tenant):.3f}",
                "yes" if run.is_as_simulated(tenant) else "no",
            ]
            for run in runs
            for tenant, num in run.measured.num.items()
        ],
    )
    report.table(
        [
            "load",
            "goodput/s",
            "simulated",
            "accepted in time",
            "predicted within",
            "error",
            "step, decode, token of a prompt, ms",
            "wakes",
            "unfinished",
        ],
        [
            [
                f"{run.load:g}",
                run.measured.goodput_per_s,
                run.simulated.goodput_per_s,
                f"{run.measured.accepted_met:.3f}",
                f"{run.measured.predictions.within:.3f}",
                run.measured.predictions.mape,
                ", ".join(f"{1e3 * seconds:.2f}" for seconds in astuple(run.costs)),
                run.num_wakes,
                ", ".join(f"{num} {error}" for error, num in run.errors.items()) or "none",
            ]
            for run in runs
        ],
    )
    woken = sum(run.num_wakes for run in runs)
    report.text(
        f"Predictions are those of accepted requests that had a first token. {woken} models were woken or loaded "
        "meanwhile"
        + (": a client does not see for which requests." if woken else ", so no request needed a wake.")
    )
    report.data(
        "real",
        [
            {
                "load": run.load,
                "costs": asdict(run.costs),
                "measured": asdict(run.measured),
                "simulated": asdict(run.simulated),
                "refusals_s": run.refusals_s,
                "errors": dict(run.errors),
            }
            for run in runs
        ],
    )


def _line(run: RealRun) -> str:
    shares = ", ".join(
        f"{tenant} {run.measured.attainment(tenant):.3f} ({run.simulated.attainment(tenant):.3f})"
        for tenant in run.measured.num
    )
    return f"{run.load:g} x capacity on a real server (simulated): {shares}"
