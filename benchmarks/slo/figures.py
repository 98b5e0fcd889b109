"""Figures, tables and the plot of the queue's policies in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.intervals import mean_ratio
from benchmarks.report import Report
from benchmarks.slo.judged import JudgedRun
from benchmarks.slo.simulated import BOUNDED_LOAD, PolicyCell, SloGrid
from benchmarks.slo.workload import BATCH
from memory_manager.policy.device_queue import QueuePolicy

__all__ = ["best_bounded", "figures_of_cells", "load_name", "ratios_of_cells", "report_cells_of_policies"]

_MARKERS = {QueuePolicy.FCFS: "s", QueuePolicy.SJF: "^", QueuePolicy.VTC: "v", QueuePolicy.SLO: "o"}


def load_name(load: float) -> str:
    """A load as figures' names have it: 1.2 as ``1_2``."""
    return f"{load:.1f}".replace(".", "_")


def best_bounded(cells: Sequence[PolicyCell]) -> PolicyCell | None:
    """The one with the highest goodput of those with few places in the queue; None if none was tried."""
    bounded = [each for each in cells if each.variant.is_bounded]
    return max(bounded, key=lambda each: each.mean(_goodput_per_s), default=None)


def ratios_of_cells(cells: Sequence[PolicyCell]) -> dict[str, tuple[float, float]]:
    """Mean ratios over the seeds with half of their 95 % intervals, by the names of figures."""
    slo, fcfs = _cell(cells, QueuePolicy.SLO, BOUNDED_LOAD), _cell(cells, QueuePolicy.FCFS, BOUNDED_LOAD)
    most, full = _cell(cells, QueuePolicy.SLO, 3.0), _cell(cells, QueuePolicy.SLO, 1.0)
    ratios: dict[str, tuple[float, float]] = {}
    if slo is not None and fcfs is not None:
        name = load_name(BOUNDED_LOAD)
        ratios[f"goodput_slo_over_fcfs_{name}"] = mean_ratio(slo.goodputs_per_s, fcfs.goodputs_per_s)
        if (best := best_bounded(cells)) is not None:
            found = mean_ratio(slo.goodputs_per_s, best.goodputs_per_s)
            ratios[f"goodput_slo_over_best_bounded_{name}"] = found
        completed = [[float(run.completed.get(BATCH, 0)) for run in each.runs] for each in (slo, fcfs)]
        ratios[f"batch_share_of_fcfs_{name}"] = mean_ratio(*completed)
    if most is not None and full is not None:
        ratios["goodput_3_0_over_1_0"] = mean_ratio(most.goodputs_per_s, full.goodputs_per_s)
    return ratios


def figures_of_cells(cells: Sequence[PolicyCell]) -> dict[str, float]:
    """The figures that the cells give; those that they cannot give are left out."""
    figures: dict[str, float] = {}
    for name, (ratio, half) in ratios_of_cells(cells).items():
        figures |= {name: ratio, f"{name}_half_interval": half}
    for tenant, load in (("tight", 0.8), ("tight", 1.0), ("loose", 1.0)):
        if (cell := _cell(cells, QueuePolicy.SLO, load)) is not None:
            figures[f"attainment_{tenant}_{load_name(load)}"] = cell.attainment(tenant)
    for cell in _of(cells, QueuePolicy.SLO):
        share = load_name(cell.load)
        figures |= {
            f"accepted_met_simulated_{share}": cell.mean(lambda run: run.accepted_met),
            f"prediction_within_25_simulated_{share}": cell.mean(lambda run: run.predictions.within),
            f"prediction_mape_simulated_{share}": cell.mean(lambda run: run.predictions.mape),
            f"prediction_within_25_interactive_simulated_{share}": cell.mean(
                lambda run: run.interactive_predictions.within
            ),
        }
    return figures


def report_cells_of_policies(
    report: Report, grid: SloGrid, capacity_per_s: float, cells: Sequence[PolicyCell], requests_per_s: float
) -> None:
    """Adds the plot and the tables of cells, and what was simulated."""
    costs, machine = grid.machine.costs, grid.machine
    report.text(
        f"## In virtual time\n\n{grid.num_seeds} traces of {grid.num_requests} requests at each load, the same for "
        f"every policy, at {requests_per_s:.0f} simulated requests per second of one core. A step costs "
        f"{1e3 * costs.step_s:.2f} ms, {1e3 * costs.decode_s:.3f} ms for each decode and "
        f"{1e3 * costs.prefill_token_s:.4f} ms for each token of a prefill, as measured on the torch engine; "
        f"{machine.kv_tokens} tokens of KV; all models resident. Capacity: {capacity_per_s:.3f} requests per "
        f"second, the most of which first come, first served, whose queue has no bound, completes 98 % by the end of "
        f"{grid.num_capacity_seeds} traces of {grid.capacity_duration_s:.0f} s. Without a bound in its name a policy "
        f"refuses the {machine.max_waiting + 1}th that waits for one model."
    )
    _plot(report.plot("slo", "Attainment and goodput against load, by policy"), grid, capacity_per_s, cells)
    tenants = grid.workload.tenants
    report.text(
        "Share of each tenant's requests that attained what they were promised, and goodput as a share of the "
        "capacity:"
    )
    report.table(
        ["load", "policy", *(each.name for each in tenants), "refused", "completed", "goodput"],
        [
            [
                f"{cell.load:g}",
                cell.variant.name,
                *(f"{cell.attainment(each.name):.3f}" for each in tenants),
                f"{cell.mean(_refused):.3f}",
                f"{cell.mean(_completed_share):.3f}",
                f"{cell.mean(_goodput_per_s) / capacity_per_s:.3f}",
            ]
            for cell in cells
        ],
    )
    report.text(
        "What each policy trades: seconds to the first token, a mean over the requests that it accepted, against "
        "requests completed per second. Of the predictions, the share within 25 % or 50 ms, and the mean error as a "
        "share of the wait:"
    )
    report.table(
        ["load", "policy", "TTFT, s", "completed/s", "accepted in time", "predicted within", "error"],
        [
            [
                f"{cell.load:g}",
                cell.variant.name,
                cell.mean(lambda run: run.ttft_mean_s),
                cell.mean(lambda run: run.completed_per_s),
                f"{cell.mean(lambda run: run.accepted_met):.3f}",
                f"{cell.mean(lambda run: run.predictions.within):.3f}",
                cell.mean(lambda run: run.predictions.mape),
            ]
            for cell in cells
        ],
    )
    ratios = ratios_of_cells(cells)
    report.text("Ratios, means over the seeds with half of their 95 % intervals:")
    report.table(
        ["figure", "ratio"], [[f"`{name}`", "{:.3f} ± {:.3f}".format(*ratios[name])] for name in ratios]
    )
    if (best := best_bounded(cells)) is not None:
        report.text(f"The best of those with a bounded queue is {best.variant.name}.")
    report.data(
        "simulated",
        [
            {"load": cell.load, "policy": cell.variant.name, "runs": [asdict(run) for run in cell.runs]}
            for cell in cells
        ],
    )


def _plot(path: Path, grid: SloGrid, capacity_per_s: float, cells: Sequence[PolicyCell]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    promised = [each.name for each in grid.workload.tenants if each.is_interactive]
    figure, panels = pyplot.subplots(1, len(promised) + 1, figsize=(4 * len(promised) + 4, 4))
    values: list[tuple[str, Callable[[PolicyCell], float]]] = [
        (f"attainment, {name}", lambda cell, name=name: cell.attainment(name))  # type: ignore[misc]
        for name in promised
    ]
    values.append(("goodput / capacity", lambda cell: cell.mean(_goodput_per_s) / capacity_per_s))
    for axes, (label, value) in zip(panels, values, strict=True):
        for policy, marker in _MARKERS.items():
            row = _of(cells, policy)
            axes.plot([each.load for each in row], list(map(value, row)), marker=marker, label=policy.value)
        if (best := best_bounded(cells)) is not None:
            axes.plot([best.load], [value(best)], "kx", label=best.variant.name)
        axes.set_xlabel("load / capacity")
        axes.set_title(label)
        axes.set_ylim(bottom=0)
    panels[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _of(cells: Sequence[PolicyCell], policy: QueuePolicy) -> list[PolicyCell]:
    """Cells of a policy whose queue is as usual, by load."""
    found = [each for each in cells if each.variant.policy is policy and not each.variant.is_bounded]
    return sorted(found, key=lambda each: each.load)


def _cell(cells: Sequence[PolicyCell], policy: QueuePolicy, load: float) -> PolicyCell | None:
    return next((each for each in _of(cells, policy) if each.load == load), None)


def _goodput_per_s(run: JudgedRun) -> float:
    return run.goodput_per_s


def _refused(run: JudgedRun) -> float:
    return sum(run.refused.values()) / max(1, sum(run.num.values()))


def _completed_share(run: JudgedRun) -> float:
    return sum(run.completed.values()) / max(1, sum(run.num.values()))
