"""``mooring bench``: benchmarks that an operator runs on the machine at hand."""

from __future__ import annotations

import signal
import sys
from collections.abc import Collection, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from mooring.cli.output import console
from mooring.errors import ConfigurationError

app = typer.Typer(help="Measure this machine; each writes report.md and results.json.", no_args_is_help=True)

Out = Annotated[Path, typer.Option(help="Folder for the report.", file_okay=False)]


@app.callback()
def _bench() -> None:
    """Measure this machine; each writes report.md and results.json."""
    # Servers and workers that a benchmark has started are stopped on the way out.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


@app.command()
def batching(
    out: Out = Path("bench-out/batching"),
    model: Annotated[
        Path | None,
        typer.Option(help="A Hugging Face folder; random weights of SmolLM2-135M's shape if not given."),
    ] = None,
    requests: Annotated[int, typer.Option(min=4, help="Requests in each run.")] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each mode; the median counts.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the workload.")] = 0,
) -> None:
    """Compare sequential, static and continuous batching, 1 to 32 requests at once."""
    _check_can_draw()
    from benchmarks.batching import main  # torch takes seconds to import

    def show(mode: str, concurrency: int, tokens_per_s: float) -> None:
        console().print(f"{mode:>27}  {concurrency:>2} at once  {tokens_per_s:8.1f} tokens/s")

    figures = main(out, model, requests, repeats, seed, show)
    for name, value in figures.items():
        console().print(f"{name}: {value:.2f}")
    console().print(f"Report: {out / 'report.md'}")


@app.command()
def router(
    out: Out = Path("bench-out/router"),
    streams: Annotated[int, typer.Option(min=1, help="At once, for throughput.")] = 64,
    requests: Annotated[int, typer.Option(min=1, help="Of each throughput run.")] = 256,
    tokens: Annotated[int, typer.Option(min=1, help="Of each stream.")] = 256,
    repeats: Annotated[int, typer.Option(min=1, help="Of each measurement; the median counts.")] = 5,
    samples: Annotated[
        Path | None, typer.Option(help="Folder of the sample models; the server's own if not given.")
    ] = None,
    profile: Annotated[bool, typer.Option(help="Record flame graphs too (needs py-spy).")] = True,
) -> None:
    """Measure what the router adds: latency, tokens per second and CPU time through each door."""
    from benchmarks.router import RouterLoad, main

    def show(name: str, value: float) -> None:
        console().print(f"{name}: {value:.2f}")

    figures = main(out, RouterLoad(streams, requests, tokens, repeats), samples, profile, show)
    console().print(f"added_ms_p50: {figures['added_ms_p50']:.2f}")
    console().print(f"Report: {out / 'report.md'}")


Quick = Annotated[bool, typer.Option("--quick", help="Tiny models, seconds: whether it works, not how well.")]


@app.command()
def sharing(
    out: Out = Path("bench-out/sharing"),
    part: Annotated[list[str] | None, typer.Option(help="simulated or real; both if not given.")] = None,
    duration_s: Annotated[float, typer.Option(min=30, help="Of the trace in each real cell.")] = 120.0,
    seed: Annotated[int, typer.Option(help="Of the traces.")] = 0,
    peer_gguf: Annotated[
        Path | None,
        typer.Option(help="A model for llama-cpp-python's server, measured beside us where it is installed."),
    ] = None,
    quick: Quick = False,
) -> None:
    """Share one budget between three models under bursts: elastic, statically cut, one at a time."""
    from benchmarks.sharing import PARTS, SharingLoad, main

    _check_parts(part, PARTS)
    load = SharingLoad.quick(seed) if quick else SharingLoad.full(duration_s, seed)
    figures = main(out, load, console().print, part or PARTS, peer_gguf)
    for name, value in figures.items():
        console().print(f"{name}: {value:.3g}")
    console().print(f"Report: {out / 'report.md'}")


@app.command()
def slo(
    out: Out = Path("bench-out/slo"),
    part: Annotated[list[str] | None, typer.Option(help="simulated or real; both if not given.")] = None,
    duration_s: Annotated[float, typer.Option(min=30, help="Of each trace on the real server.")] = 75.0,
    seed: Annotated[int, typer.Option(help="Of the traces on the real server.")] = 0,
    quick: Quick = False,
) -> None:
    """Serve tenants with SLO classes at half to three times the capacity, by each policy of the queue."""
    _check_can_draw()
    from benchmarks.slo.benchmark import PARTS, SloLoad, main

    _check_parts(part, PARTS)
    load = SloLoad.quick(seed) if quick else SloLoad.full(duration_s, seed)
    figures = main(out, load, console().print, part or PARTS)
    for name, value in figures.items():
        console().print(f"{name}: {value:.4g}")
    console().print(f"Report: {out / 'report.md'}")


@app.command()
def fairness(out: Out = Path("bench-out/fairness"), quick: Quick = False) -> None:
    """Compare tenants of one priority: what a flood of one costs the others, and how evenly service goes."""
    from benchmarks.fairness import FairnessLoad, main

    figures = main(out, FairnessLoad.quick() if quick else FairnessLoad.full(), console().print)
    for name, value in figures.items():
        console().print(f"{name}: {value:.4g}")
    console().print(f"Report: {out / 'report.md'}")


@app.command()
def residency(
    out: Out = Path("bench-out/residency"),
    part: Annotated[
        list[str] | None,
        typer.Option(
            help="transitions, handover, single_model, neighbours, host_tier or planner; all if not given."
        ),
    ] = None,
    quick: Quick = False,
) -> None:
    """Measure wakes, loads, KV handed over, one model alone and its neighbours."""
    _check_can_draw()
    from benchmarks.residency import PARTS, ResidencyLoad, main

    _check_parts(part, PARTS)

    def show(name: str, value: float) -> None:
        console().print(f"{name}: {value:.4g}")

    main(out, ResidencyLoad.quick() if quick else ResidencyLoad(), show, tuple(part or ()))
    console().print(f"Report: {out / 'report.md'}")


@app.command()
def gpu(
    out: Out = Path("bench-out/gpu"),
    device: Annotated[str, typer.Option(help="cuda:0; cpu only shows that it runs.")] = "cuda:0",
    quick: Quick = False,
) -> None:
    """Measure wakes and KV handed over on an NVIDIA GPU, against its link."""
    from benchmarks.gpu import GpuLoad, main

    for name, value in main(out, device, GpuLoad.quick() if quick else GpuLoad()).items():
        console().print(f"{name}: {value:.4g}")
    console().print(f"Report: {out / 'report.md'}")


@app.command()
def soak(
    out: Out = Path("bench-out/soak"),
    minutes: Annotated[float, typer.Option(min=0.1, help="Of the disturbed part.")] = 20.0,
    seed: Annotated[int, typer.Option(help="Of load and disturbances.")] = 0,
    quick: Quick = False,
) -> None:
    """Run for long under load, registrations, sleeps, deaths and memory pressure, and count what was lost."""
    _check_can_draw()
    from benchmarks.soak import SoakLoad, main

    figures = main(out, SoakLoad.quick(seed) if quick else SoakLoad.full(minutes, seed), console().print)
    for name, value in figures.items():
        console().print(f"{name}: {value:.4g}")
    console().print(f"Report: {out / 'report.md'}")


@app.command()
def abuse(
    out: Out = Path("bench-out/abuse"),
    runs: Annotated[int, typer.Option(min=1, help="Of each attack; the median counts.")] = 5,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="ATTACK, ATTACK/DOOR or ATTACK/DOOR/CALLER, or a pattern (repeatable); all if not given."
        ),
    ] = None,
    quick: Quick = False,
) -> None:
    """Attack servers of its own through every door; exits with 1 if another client notices."""
    from benchmarks.abuse.benchmark import AbuseLoad, main

    load = AbuseLoad.quick() if quick else AbuseLoad(num_runs=runs)
    figures = main(out, load, only or (), console().print)
    for name, value in figures.items():
        console().print(f"{name}: {value:.4g}")
    console().print(f"Report: {out / 'report.md'}")
    if figures["missed"] and not quick:
        raise typer.Exit(1)


@app.command()
def isolation(
    out: Out = Path("bench-out/isolation"),
    seed: Annotated[int, typer.Option(help="Of the prompts and their order.")] = 0,
    quick: Quick = False,
) -> None:
    """Let a tenant guess by the time what another one sent; exits with 1 if it can."""
    from benchmarks.isolation import IsolationLoad, main

    load = IsolationLoad.quick(seed) if quick else IsolationLoad.full(seed)
    figures = main(out, load, console().print)
    for name, value in figures.items():
        console().print(f"{name}: {value:.4g}")
    console().print(f"Report: {out / 'report.md'}")
    if figures["missed"] and not quick:
        raise typer.Exit(1)


@app.command()
def ui(
    out: Out = Path("bench-out/ui"),
    minutes: Annotated[float, typer.Option(min=0.1, help="For which ten tabs are open.")] = 5.0,
    quick: Quick = False,
) -> None:
    """Open the web UI in ten tabs: processor time, delay of changes, first load, the memory map against the API."""
    if find_spec("playwright") is None:
        raise ConfigurationError("the benchmark drives a browser: pip install 'mooring[dev]'")
    from benchmarks.ui import UiLoad, main

    figures = main(out, UiLoad.quick() if quick else UiLoad(seconds=60 * minutes), console().print)
    for name, value in figures.items():
        console().print(f"{name}: {value:.4g}")
    console().print(f"Report: {out / 'report.md'}")


def _check_can_draw() -> None:
    """Checks that plots can be drawn, before the minutes of measuring rather than after them."""
    if find_spec("matplotlib") is None:
        raise ConfigurationError("the report's plots need matplotlib: pip install 'mooring[bench]'")


def _check_parts(chosen: Sequence[str] | None, parts: Collection[str]) -> None:
    if unknown := sorted(set(chosen or ()) - set(parts)):
        raise ConfigurationError(f"no part {unknown[0]!r}; there are {', '.join(parts)}")
