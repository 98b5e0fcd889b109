"""Three models under bursty, skewed traffic on one budget: elastic, statically partitioned, and swapped.

``mooring bench sharing --out DIR``. First in virtual time, over a grid of budgets, wakes and loads
(``benchmarks.sharing_simulated``), with steps that cost what the torch engine's cost here; then some cells on real
servers (``benchmarks.sharing_real``; their traces lie beside the report, for anybody to replay).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.llama_cpp_peer import measure_peer
from benchmarks.random_models import SMALL_SHAPE, TINY_SHAPE, make_random_models, native_precision
from benchmarks.replay import Targets
from benchmarks.report import Report
from benchmarks.sharing_policies import Arrangement, Budget
from benchmarks.sharing_real import RealLoad, figures_of, measure_cells, report_cells
from benchmarks.sharing_simulated import (
    LOADS,
    grid_figures,
    quick_grid,
    report_grid,
    simulate_grid,
    whole_grid,
)
from benchmarks.step_costs import DRAWN_S, mean_lengths, measure_step_costs
from benchmarks.traces import TraceSpec, draw_trace

__all__ = ["PARTS", "SharingLoad", "main"]

PARTS = ("simulated", "real")
MODELS = ("popular", "middling", "rare")
TTFT_TIMES_ALONE, TPOT_TIMES_ALONE = 10.0, 8.0
_PEER_PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class SharingLoad:
    """Amounts of everything that is measured.

    Attributes:
        shape: config.json of the models.
        shape_name: the report's words for the shape.
        trace: a trace's settings, whose load and models are replaced.
        max_model_len: context in tokens; prompts and outputs fit.
        num_sequences: sequences of the longest length that the KV holds in all.
        real_cells: budgets and loads, as numbers of those of the grid, that real servers are measured at.
        num_threads: threads that torch computes with; None leaves the engine's own choice.
        is_quick: whether a few cells in virtual time are enough.
    """

    shape: dict[str, object]
    shape_name: str
    trace: TraceSpec
    max_model_len: int = 320
    num_sequences: int = 10
    real_cells: tuple[tuple[Budget, int], ...] = (
        (Budget.ALL, 2),
        (Budget.TWO_OF_THREE, 1),
        (Budget.TWO_OF_THREE, 3),
    )
    num_threads: int | None = None
    is_quick: bool = False

    @classmethod
    def full(cls, duration_s: float, seed: int) -> SharingLoad:
        """Models of 25 million parameters with a KV head for each query head.

        Args:
            duration_s: seconds of each real cell's trace.
        """
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
            real_cells=((Budget.ALL, 0),),
            num_threads=1,
            is_quick=True,
        )


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
    precision = native_precision()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="mooring-bench-") as name:
        scratch, trace = Path(name), load.trace
        folders = make_random_models(scratch / "models", load.shape, MODELS, precision)
        arrangement = Arrangement.of(folders, precision, load.max_model_len, load.num_sequences)
        drawn = draw_trace(replace(trace, requests_per_s=1.0, duration_s=DRAWN_S))
        costs = measure_step_costs(arrangement, drawn, scratch, load.num_threads)
        ttft_s = costs.seconds(0, round(mean_lengths(trace)[0]))
        targets = Targets(TTFT_TIMES_ALONE * ttft_s, TPOT_TIMES_ALONE * costs.seconds(1, 0))
        grid = whole_grid(costs, trace, load.num_sequences * load.max_model_len, targets)
        _describe(report, load, targets)
        if "simulated" in parts:
            simulated = quick_grid(grid) if load.is_quick else grid
            cells, requests_per_s = simulate_grid(simulated, show)
            report_grid(report, simulated, cells, requests_per_s)
            figures |= {**grid_figures(cells, len(MODELS)), "simulated_requests_per_s": requests_per_s}
        if "real" in parts:
            loads = tuple(
                (budget, LOADS[index], grid.loads_per_s[index]) for budget, index in load.real_cells
            )
            real = RealLoad(arrangement, grid.machine, trace, loads, load.num_threads)
            traces = report.out / "traces"
            traces.mkdir(exist_ok=True)
            real_cells = measure_cells(real, scratch, traces, show)
            report_cells(report, real, real_cells)
            figures |= {f"{figure}_real": value for figure, value in figures_of(real_cells).items()}
            loads_per_s = sorted({load_per_s for *_, load_per_s in loads})
            peer = measure_peer(scratch, peer_gguf, trace, targets, loads_per_s, _PEER_PATIENCE_S)
            report.text(f"## llama-cpp-python's server with its model swap\n\n{peer.description}")
            report.data(
                "llama_cpp_python", {str(rate): asdict(summary) for rate, summary in peer.curve.items()}
            )
    for figure, value in figures.items():
        report.figure(figure, value)
    report.write()
    return figures


def _describe(report: Report, load: SharingLoad, targets: Targets) -> None:
    trace = load.trace
    report.text(
        f"Three models of {load.shape_name}, and KV for {load.num_sequences} sequences of {load.max_model_len} "
        f"tokens. Requests by Zipf with exponent {trace.zipf_exponent:g}, in bursts of {trace.mean_on_s:g} s with "
        f"{trace.mean_off_s:g} s between (means), prompts of {trace.prompt_tokens[0]} to {trace.prompt_tokens[1]} "
        f"tokens, outputs of {trace.output_tokens[0]} to {trace.output_tokens[1]}, log-uniform, greedy. Loads are "
        f"{', '.join(f'{share:g}' for share in LOADS)} times the requests per second that fill the KV."
    )
    report.text(
        f"A request counts as attained with its first token within {targets.ttft_s:.3f} s and at most "
        f"{1e3 * targets.tpot_s:.0f} ms for each token after it: {TTFT_TIMES_ALONE:g} and {TPOT_TIMES_ALONE:g} times "
        "what one takes alone on a resident model by the step costs measured here. Goodput is attained requests per "
        "second of the trace."
    )
    report.text(
        "All policies are the same engine. Elastic: KV floats, and the chooser decides who is resident. Static: each "
        "model holds an equal part of the KV; where not all fit, the most popular ones are served and the others "
        "refused. Swap: one model at a time, first come, first served, the one before drained."
    )
