"""Four kinds of tenants on one device, at half to three times its capacity, by the queue's policies.

``mooring bench slo --out DIR``. First in virtual time (``benchmarks.slo.simulated``), with steps that cost what the
torch engine's cost here; then three loads on a real server (``benchmarks.slo.real``; their traces lie beside the
report, for anybody to replay).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.random_models import SMALL_SHAPE, TINY_SHAPE, make_random_models, native_precision
from benchmarks.replay import Targets
from benchmarks.report import Report
from benchmarks.sharing_policies import Arrangement
from benchmarks.slo.decisions import decision_s
from benchmarks.slo.figures import figures_of_cells, report_cells_of_policies
from benchmarks.slo.real import SloRealLoad, figures_of_runs, measure_runs, report_runs
from benchmarks.slo.simulated import SloGrid, find_capacity, run_grid
from benchmarks.slo.workload import TENANTS, TenantWorkload
from benchmarks.step_costs import DRAWN_S, filling_per_s, measure_step_costs
from memory_manager.policy.step_model import StepCosts
from ops.capacity.machine import Machine

__all__ = ["PARTS", "SloLoad", "main", "slo_machine"]

PARTS = ("simulated", "real")
MODELS = ("popular", "middling", "rare")
_TTFT_TIMES_ALONE, _TPOT_TIMES_ALONE, _WAKE_TIMES_TARGET = 10.0, 8.0, 0.1


@dataclass(frozen=True, slots=True)
class SloLoad:
    """Amounts of everything that is measured.

    Attributes:
        shape: config.json of the models.
        shape_name: the report's words for the shape.
        max_model_len: context in tokens; prompts and outputs fit.
        num_sequences: sequences of the longest length that the KV holds in all.
        duration_s: seconds of each trace on the real server.
        num_threads: threads that torch computes with; None leaves the engine's own choice.
        is_quick: whether a few cells of short traces are enough.
    """

    shape: Mapping[str, object]
    shape_name: str
    workload: TenantWorkload
    duration_s: float
    seed: int = 0
    max_model_len: int = 320
    num_sequences: int = 10
    num_threads: int | None = None
    is_quick: bool = False

    @classmethod
    def full(cls, duration_s: float, seed: int) -> SloLoad:
        """Models of 25 million parameters with a KV head for each query head."""
        shape = {**SMALL_SHAPE, "num_key_value_heads": SMALL_SHAPE["num_attention_heads"]}
        return cls(
            shape,
            "25 million parameters with a KV head for each query head",
            TenantWorkload(MODELS, SMALL_SHAPE["vocab_size"]),
            duration_s,
            seed,
        )

    @classmethod
    def quick(cls, seed: int) -> SloLoad:
        """A tiny model and a few seconds: shows whether the benchmark works, not how well anything does."""
        tenants = tuple(
            replace(each, output_tokens=(8, 16), mean_on_s=0.2, mean_off_s=0.2 * bool(each.mean_off_s))
            for each in TENANTS
        )
        workload = TenantWorkload(MODELS, TINY_SHAPE["vocab_size"], tenants=tenants)
        return cls(
            TINY_SHAPE, "a tiny model", workload, 0.5, seed, max_model_len=128, num_threads=1, is_quick=True
        )


def main(
    out: Path, load: SloLoad, show: Callable[[str], None], parts: Collection[str] = PARTS
) -> dict[str, float]:
    """Measures everything and writes the report; returns the figures.

    Args:
        show: called with a line for each measurement as it is known.
        parts: of ``PARTS``.
    """
    report = Report(out, "Tenants with SLO classes on one device")
    workload, precision = load.workload, native_precision()
    with tempfile.TemporaryDirectory(prefix="mooring-bench-") as name:
        scratch = Path(name)
        folders = make_random_models(scratch / "models", load.shape, MODELS, precision)
        arrangement = Arrangement.of(folders, precision, load.max_model_len, load.num_sequences)
        drawn = [each.request for each in workload.draw(1.0, DRAWN_S, load.seed)]
        costs = measure_step_costs(arrangement, drawn, scratch, load.num_threads)
        machine = slo_machine(costs, workload, load.num_sequences * load.max_model_len)
        guess_per_s = filling_per_s(
            costs, len(MODELS), machine.kv_tokens, workload.num_prompt, workload.num_output
        )
        grid = SloGrid(machine, workload, guess_per_s)
        if load.is_quick:
            grid = grid.quick()
        _describe(report, load, workload.targets(costs))
        began_s = time.monotonic()
        capacity_per_s = find_capacity(grid)
        show(f"capacity: {capacity_per_s:.3f} requests/s, found in {time.monotonic() - began_s:.0f} s")
        figures = {"capacity_per_s": capacity_per_s}
        if "simulated" in parts:
            cells, requests_per_s = run_grid(grid, capacity_per_s, show)
            report_cells_of_policies(report, grid, capacity_per_s, cells, requests_per_s)
            figures |= {**figures_of_cells(cells), "simulated_requests_per_s": requests_per_s}
            figures["simulated_minutes"] = (time.monotonic() - began_s) / 60
        if "real" in parts:
            real = SloRealLoad(
                arrangement,
                machine,
                workload,
                capacity_per_s,
                duration_s=load.duration_s,
                warm_up_s=load.duration_s / 5,
                seed=load.seed,
                num_threads=load.num_threads,
            )
            traces = report.out / "traces"
            traces.mkdir(exist_ok=True)
            runs = measure_runs(real, scratch, traces, show)
            report_runs(report, real, runs)
            figures |= figures_of_runs(runs)
        figures["decision_us"] = 1e6 * decision_s(costs)
    for figure, value in figures.items():
        report.figure(figure, value)
    report.write()
    return figures


def slo_machine(costs: StepCosts, workload: TenantWorkload, kv_tokens: int) -> Machine:
    """A device with all models resident, and the targets of requests that are promised nothing."""
    ttft_s = _TTFT_TIMES_ALONE * costs.seconds(0, round(workload.num_prompt))
    tpot_s = _TPOT_TIMES_ALONE * costs.seconds(1, 0)
    return Machine(costs, len(workload.models), kv_tokens, _WAKE_TIMES_TARGET * ttft_s, ttft_s, tpot_s)


def _describe(report: Report, load: SloLoad, targets: Mapping[str, Targets]) -> None:
    workload = load.workload
    report.text(
        f"Three models of {load.shape_name}, and KV for {load.num_sequences} sequences of {load.max_model_len} "
        f"tokens. Requests by Zipf with exponent {workload.zipf_exponent:g}, prompts of {workload.prompt_tokens[0]} "
        f"to {workload.prompt_tokens[1]} tokens, log-uniform, greedy. Requests of all tenants but the last have "
        "priority 1 and are refused if they are not expected to begin in time; a refusal counts as a miss. Those of "
        "the last are promised nothing, wait for as long as it takes, and count if they have finished by the end of "
        "the trace. "
        "Goodput is attained requests per second of the trace."
    )
    report.table(
        ["tenant", "share of requests", "TTFT target, s", "TPOT target, ms", "outputs", "bursts"],
        [
            [
                each.name,
                f"{each.share:.0%}",
                f"{targets[each.name].ttft_s:.3f}" if each.name in targets else "none",
                f"{1e3 * targets[each.name].tpot_s:.0f}" if each.name in targets else "none",
                f"{each.output_tokens[0]} to {each.output_tokens[1]}",
                f"{each.mean_on_s:g} s, {each.mean_off_s:g} s between" if each.mean_off_s else "none",
            ]
            for each in workload.tenants
        ],
    )
    report.text(
        "Targets are multiples of what one request takes alone on a resident model by the step costs measured here: "
        + "; ".join(
            f"{each.name} {each.ttft_times:g} and {each.tpot_times:g}"
            for each in workload.tenants
            if each.is_interactive
        )
        + "."
    )
