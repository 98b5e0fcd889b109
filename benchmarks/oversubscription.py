"""Three models of equal size on a budget for 2.2 of them, all asked for at once.

``python -m benchmarks.oversubscription --out DIR``: SmolLM2-135M and two models of its shape with random
weights, in fp32; 100 requests to each, 16 at a time for each model. Every answer must be the one that the
model gives alone, and the ledger must stay within the budget. So must the worker's resident memory, less that
of a worker without a model and a fixed allowance for workspace.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import psutil
import typer

from benchmarks.report import Report
from benchmarks.streams import Agreement, Outcome, Stream, count_agreements, draw_streams, run_streams
from engines.checkpoint.model_config import describe
from memory_manager.kv_spec import round_to_pages
from mooring.units import MIB, format_bytes
from ops.running_server import RunningServer
from ops.samples import ensure_samples
from ops.samples.random_model import copy_tokenizer
from ops.samples.random_weights import write_random_weights
from ops.samples.shapes import SHAPES

__all__ = ["Watch", "measure"]

BUDGET_IN_MODELS = 2.2
WORKSPACE_BYTES = 200 * MIB
MAX_MODEL_LEN = 512
AT_ONCE = 16


@dataclass
class Watch:
    """Reads the ledger and the worker's resident memory, over and over, on a thread."""

    server: RunningServer
    interval_s: float = 0.1
    max_ledger_bytes: int = 0
    max_rss_bytes: int = 0
    num_readings: int = 0
    _done: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Watch:
        self._thread = threading.Thread(target=self._run, name="watch")
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        worker = psutil.Process(self.server.worker_pids()[0])
        while not self._done.wait(self.interval_s):
            self.max_rss_bytes = max(self.max_rss_bytes, worker.memory_info().rss)
            held = sum(self.server.status()["devices"][0]["owners"].values())
            self.max_ledger_bytes = max(self.max_ledger_bytes, held)
            self.num_readings += 1


def measure(
    server: RunningServer, streams: list[Stream], references: list[Outcome], budget_bytes: int
) -> dict[str, float]:
    """Runs all ``streams``, ``AT_ONCE`` of each model at a time; returns the figures."""
    empty_rss_bytes = psutil.Process(server.worker_pids()[0]).memory_info().rss
    models = sorted({stream.model for stream in streams})
    started_s = time.monotonic()

    async def run_all() -> list[list[Outcome]]:
        by_model = [[each for each in streams if each.model == model] for model in models]
        return await asyncio.gather(*(run_streams(server.grpc_target, part, AT_ONCE) for part in by_model))

    with Watch(server) as watch:
        outcomes_by_model = dict(zip(models, asyncio.run(run_all()), strict=True))
    seconds = time.monotonic() - started_s
    iterators = {model: iter(outcomes) for model, outcomes in outcomes_by_model.items()}
    outcomes = [next(iterators[stream.model]) for stream in streams]
    for error in sorted({outcome.error for outcome in outcomes if outcome.error}):
        print(error)
    agreements = count_agreements(streams, references, outcomes)
    allowed_rss_bytes = budget_bytes + empty_rss_bytes + WORKSPACE_BYTES
    return {
        "requests": len(streams),
        "finished": len(streams) - agreements[Agreement.LOST],
        "equal": agreements[Agreement.EQUAL],
        "near_ties": agreements[Agreement.NEAR_TIE],
        "altered": agreements[Agreement.ALTERED],
        "budget_bytes": budget_bytes,
        "max_ledger_bytes": watch.max_ledger_bytes,
        "empty_worker_rss_bytes": empty_rss_bytes,
        "max_worker_rss_bytes": watch.max_rss_bytes,
        "allowed_worker_rss_bytes": allowed_rss_bytes,
        "readings": watch.num_readings,
        "seconds": seconds,
    }


def main(
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("bench-out/oversubscription"),
    samples: Annotated[Path | None, typer.Option(help="Folder of the sample models.")] = None,
    requests: Annotated[int, typer.Option(help="To each model.")] = 100,
    max_tokens: Annotated[int, typer.Option(help="Output of each request, in tokens.")] = 16,
) -> None:
    """Ask three models for everything at once on a budget for 2.2 of them."""
    with tempfile.TemporaryDirectory(prefix="mooring-bench-") as scratch:
        folders = _models(Path(scratch), samples)
        model_bytes = round_to_pages(describe(folders["smollm2"]).weights_bytes("fp32"))
        budget_bytes = round_to_pages(int(BUDGET_IN_MODELS * model_bytes))
        streams = draw_streams(
            tuple(folders), requests, max_tokens, 0, SHAPES["SmolLM2-135M"]["vocab_size"], 0.5
        )
        references = _references(Path(scratch), folders, streams)
        with RunningServer(
            Path(scratch) / "data", {}, config=_config(Path(scratch), folders, budget_bytes)
        ) as server:
            figures = measure(server, streams, references, budget_bytes)
    report = Report(out, "Three models on a budget for 2.2 of them")
    report.text(
        f"{', '.join(folders)}: {format_bytes(model_bytes)} each in fp32, {requests} requests of {max_tokens} "
        f"tokens to each, {AT_ONCE} at a time for each model, all models at once, half of them greedy and half "
        "at temperature 1; compared with the same requests to each model alone on a budget of its own. Ledger "
        "and resident memory are the highest of many readings."
    )
    for name, value in figures.items():
        report.figure(name, value)
        print(f"{name}: {value:g}")
    report.write()


def _models(scratch: Path, samples: Path | None) -> dict[str, Path]:
    smollm2 = next(s for s in ensure_samples(samples or scratch / "samples") if s.name == "smollm2")
    folders = {"smollm2": smollm2.folder}
    for number in (1, 2):
        folder = folders[f"random{number}"] = scratch / f"random{number}"
        folder.mkdir()
        write_random_weights(SHAPES["SmolLM2-135M"], folder, "bf16", seed=number)
        copy_tokenizer(smollm2.folder, folder)
    return folders


def _references(scratch: Path, folders: Mapping[str, Path], streams: list[Stream]) -> list[Outcome]:
    """The answers that each model gives alone, on a server of its own, with a few requests at a time."""
    answers: dict[str, list[Outcome]] = {}
    for model, folder in folders.items():
        flags = ["--dtype", "float32", "--memory-budget", "2GiB"]
        with RunningServer(scratch / f"alone-{model}", {model: folder}, flags) as server:
            part = [each for each in streams if each.model == model]
            answers[model] = asyncio.run(run_streams(server.grpc_target, part, 4))
    iterators = {model: iter(outcomes) for model, outcomes in answers.items()}
    return [next(iterators[stream.model]) for stream in streams]


def _config(scratch: Path, folders: Mapping[str, Path], budget_bytes: int) -> Path:
    """Writes the settings. Contexts are limited so that one of full length fits beside the weights of two
    models."""
    lines = [f"memory_budget = {budget_bytes}", 'dtype = "float32"']
    for name, folder in folders.items():
        lines += [
            "[[models]]",
            f'name = "{name}"',
            f'source = "{folder}"',
            f"max_model_len = {MAX_MODEL_LEN}",
        ]
    path = scratch / "mooring.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


if __name__ == "__main__":
    typer.run(main)
