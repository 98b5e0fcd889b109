"""The cost of moving models and KV: wakes, loads, handing KV over, serving alone, serving beside a neighbour.

``mooring bench residency --out DIR``. Figures that are compared with the machine's own rates have these
measured beside them, in the same run and in turn; figures are medians.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.host_tier import measure_host_tier
from benchmarks.kv_elasticity import (
    Handover,
    SingleModel,
    measure_handover,
    measure_single_model,
    pack_random,
)
from benchmarks.neighbours import FIRST, SECOND, SERVING, measure_neighbours, write_neighbours_config
from benchmarks.planner import measure as measure_planner
from benchmarks.random_models import make_random_models, shape
from benchmarks.report import Report
from benchmarks.transitions import Transitions, measure_transitions
from mooring.units import GIB, MIB, format_bytes
from ops.running_server import RunningServer

__all__ = ["PARTS", "ResidencyLoad", "main"]


@dataclass(frozen=True, slots=True)
class ResidencyLoad:
    """Amounts of everything that is measured.

    Attributes:
        shape_name: shape of the model that wakes, loads and serves beside another; see
            ``random_models.shape``.
        step_shape_name: shape of the model whose output tokens per second are counted.
        transitions: number of wakes and loads that are timed.
        handover_bytes: least bytes of KV that live sequences hold before it is handed over.
        num_requests: requests of each run of the single model.
        repeats: runs of the single model.
        neighbour_repeats: wakes and loads beside a stream.
        host_tier_shape_name: shape of the models that share a small host tier.
        host_tier_rounds: times that they are all asked, at once and one after another.
        stream_tokens: tokens of that stream, enough that it outlasts both.
        max_model_len: context of the neighbours, in tokens.
        num_threads: threads that torch computes with; None leaves the engine's own choice.
    """

    shape_name: str = "Qwen2.5-0.5B"
    step_shape_name: str = "SmolLM2-135M"
    transitions: int = 9
    handover_bytes: int = 2 * GIB
    num_requests: int = 48
    repeats: int = 5
    neighbour_repeats: int = 16
    host_tier_shape_name: str = "SmolLM2-135M"
    host_tier_rounds: int = 4
    stream_tokens: int = 112
    max_model_len: int = 512
    num_threads: int | None = None

    @classmethod
    def quick(cls) -> ResidencyLoad:
        """Tiny models, once or twice each: shows whether the benchmark works, not how quick anything is."""
        return cls("tiny", "tiny", 2, 32 * MIB, 8, 1, 1, "tiny", 1, 1200, 2048, num_threads=1)


def main(
    out: Path, load: ResidencyLoad, show: Callable[[str, float], None], parts: tuple[str, ...] = ()
) -> dict[str, float]:
    """Measures everything and writes the report; returns the figures.

    Args:
        show: called with each figure as it is known.
        parts: names of ``PARTS``; empty means all.
    """
    report = Report(out, "Moving models and KV")
    figures: dict[str, float] = {}
    for name in parts or PARTS:
        with tempfile.TemporaryDirectory(prefix="mooring-bench-") as scratch:
            found = PARTS[name](Path(scratch), load, report)
        for figure, value in found.items():
            show(figure, value)
            report.figure(figure, value)
        figures |= found
    report.write()
    return figures


def _transitions(scratch: Path, load: ResidencyLoad, report: Report) -> dict[str, float]:
    model = pack_random(scratch, "model", shape(load.shape_name), "bf16", 0)
    found = measure_transitions(model, load.transitions)
    report.text(
        f"## Wake and cold load\n\nOne model of {load.shape_name}'s shape in bf16, "
        f"{format_bytes(model.num_bytes)}, in an engine in a process like a worker's. `wake_share_of_copy`: "
        "the rate of a wake that copies, as on a GPU (`cpu_wake = copy`), over that of two threads that copy between "
        "touched buffers. `load_share_of_read`: the rate from the packed file in the page cache to a resident "
        "replica over that of two threads that read the file into a touched buffer, as a CPU loads: the host copy's "
        "own pages become the device's. `copying_load_share_of_read`: the same with the second copy that "
        "`cpu_wake = copy` makes. `load_peak_over_weights`: 1, and what a load into memory that was never touched "
        "holds at its worst beyond what it holds when it is done, as a share of the weights; the worse of the two "
        "kinds; anonymous memory and memfds, by the system's own count. `load_held_over_weights`: what is held when "
        "it is done. `asleep_bytes`: device memory committed while it sleeps, beyond an empty engine's."
    )
    report.table(
        ["GB/s", *(str(number) for number in range(1, load.transitions + 1))],
        [
            [name, *(rate / 1e9 for rate in rates)]
            for name, rates in (
                ("copy, two threads", found.copy_rates),
                ("wake", found.wake_rates),
                ("read, two threads", found.read_rates),
                ("cold load", found.load_rates),
                ("cold load that copies", found.copying_load_rates),
            )
        ],
    )
    _plot_rates(report.plot("transitions", "Rates of copies, wakes, reads and loads"), found)
    report.data("transitions", asdict(found))
    return found.figures()


def _handover(scratch: Path, load: ResidencyLoad, report: Report) -> dict[str, float]:
    found: Handover = measure_handover(scratch, load.handover_bytes, load.num_threads)
    report.text(
        f"## Handing KV over\n\nA model whose KV is Llama-3-8B's (128 KiB a token) holds "
        f"{format_bytes(found.live_before_bytes)} of {format_bytes(found.pool_bytes)} in blocks of running sequences "
        "and is put to sleep; another one's sequences then take "
        f"{format_bytes(found.live_after_bytes)}. `kv_handover_ms`: letting go "
        f"({1e3 * found.let_go_s:.2f} ms) and taking, which is the time of all calls of pool, prefix cache and arena "
        "while the second model fills its blocks; its prefill is not counted."
    )
    report.data("handover", asdict(found))
    return {"kv_handover_ms": 1e3 * found.seconds, "kv_live_before_bytes": found.live_before_bytes}


def _single_model(scratch: Path, load: ResidencyLoad, report: Report) -> dict[str, float]:
    model = pack_random(scratch, "model", shape(load.step_shape_name), "bf16", 0)
    found: SingleModel = measure_single_model(model, load.num_requests, load.repeats, load.num_threads)
    report.text(
        f"## One model alone\n\n{load.step_shape_name}'s shape in bf16, {load.num_requests} requests, 16 at a time. "
        "`single_model_share`: output tokens per second with KV that comes page by page from the arena, over "
        "the same "
        "engine on one buffer that was touched at the start and never moves; medians of "
        f"{load.repeats} runs in turn, before each of which the KV is taken away and leased anew. "
        "`arena_share_of_step`: the part of all steps' time spent in the arena; `books_share_of_step`: in the arena, "
        "the KV pool and the prefix cache."
    )
    report.table(
        ["tokens/s", *(str(number) for number in range(1, load.repeats + 1))],
        [["elastic", *found.elastic], ["fixed", *found.fixed]],
    )
    report.data("single_model", asdict(found))
    return {
        "single_model_share": found.share,
        "arena_share_of_step": found.arena_share,
        "books_share_of_step": found.books_share,
    }


def _neighbours(scratch: Path, load: ResidencyLoad, report: Report) -> dict[str, float]:
    config = shape(load.shape_name)
    folders = make_random_models(scratch / "models", config, (SERVING, FIRST, SECOND), "bf16")
    settings = scratch / "mooring.toml"
    write_neighbours_config(settings, folders, load.max_model_len, load.num_threads)
    with RunningServer(scratch / "data", {}, config=settings) as server:
        found = measure_neighbours(server, config["vocab_size"], load.neighbour_repeats, load.stream_tokens)
    kept, left_out = found.stolen_shares, found.left_out.stolen_shares if found.left_out else []
    report.text(
        f"## First tokens and neighbours\n\nA real server with three models of {load.shape_name}'s shape, "
        "through the "
        "gRPC door. `wake_to_first_token_ratio`: from the request to a sleeping model until its first token, "
        "over the "
        "wake by the server's clock and the first token of the same model when it is resident; median of "
        f"{load.neighbour_repeats}. `neighbour_itl_p99_ratio`: p99 of the gaps between a serving model's tokens that "
        f"overlap a wake ({len(found.wake_itl_s)} gaps) or a cold load ({len(found.load_itl_s)}) of another, "
        "over p99 of "
        f"those that do not ({len(found.quiet_itl_s)}). `neighbour_wake_over_idle`: what a wake takes beside "
        f"the stream over what it takes without. These are the {len(kept)} rounds of "
        f"{len(kept) + len(left_out)} in which the hypervisor withheld the least of the cores' time: "
        f"{max(kept):.1%} at most. `neighbour_itl_p99_ratio_all_rounds`: with the others, where it was up to "
        f"{max(left_out, default=0):.1%}."
    )
    _plot_gaps(
        report.plot("neighbours", "Gaps between tokens, quiet and while another model comes"), asdict(found)
    )
    report.data("neighbours", asdict(found))
    return found.figures()


def _host_tier(scratch: Path, load: ResidencyLoad, report: Report) -> dict[str, float]:
    config = shape(load.host_tier_shape_name)
    found = measure_host_tier(scratch, config, load.host_tier_rounds, load.max_model_len, load.num_threads)
    report.text(
        f"## A small host tier\n\nReal servers on a CPU with `torch.cpu_wake = copy` and models of "
        f"{load.host_tier_shape_name}'s shape, asked at once and one after another, and put to sleep again: host "
        "memory for two copies and device memory for three models; then host memory for one copy, and one model "
        "larger than that. "
        f"`host_small_failures`: of {found.num_requests} requests, those that were refused, failed or had another "
        f"text than before. {found.num_from_file} loads left no copy, {found.num_dropped} residents gave theirs up."
    )
    report.data("host_tier", asdict(found))
    return {"host_small_failures": len(found.failures)}


def _planner(scratch: Path, load: ResidencyLoad, report: Report) -> dict[str, float]:
    report.text(
        "## The planner\n\n`planner_ms_N`: one decision with N deployments, the making of its state included."
    )
    return dict(measure_planner())


PARTS: Mapping[str, Callable[[Path, ResidencyLoad, Report], dict[str, float]]] = {
    "transitions": _transitions,
    "handover": _handover,
    "single_model": _single_model,
    "neighbours": _neighbours,
    "host_tier": _host_tier,
    "planner": _planner,
}
"""Parts of the benchmark by name; each writes its part of the report and returns its figures."""


def _plot_rates(path: Path, found: Transitions) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    rates = {
        "copy": found.copy_rates,
        "wake": found.wake_rates,
        "read": found.read_rates,
        "cold load": found.load_rates,
    }
    axes.boxplot([np.array(values) / 1e9 for values in rates.values()], tick_labels=list(rates))
    axes.set_ylabel("GB/s")
    axes.set_ylim(bottom=0)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _plot_gaps(path: Path, found: Mapping[str, list[float]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for label, name in (("quiet", "quiet_itl_s"), ("wake", "wake_itl_s"), ("load", "load_itl_s")):
        gaps_ms = 1e3 * np.sort(found[name])
        axes.plot(gaps_ms, np.arange(1, len(gaps_ms) + 1) / len(gaps_ms), label=label)
    axes.set_xlabel("gap between two tokens, ms")
    axes.set_ylabel("share of gaps")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
