"""Sequential, static and continuous batching on one model: ``mooring bench batching --out DIR``.

All three run the same torch engine in this process, over the same requests, with outputs of fixed length:

- sequential: one request at a time;
- static: batches of ``c`` requests, the next one when the longest output of a batch is complete; until then
  every row of the batch is computed, as implementations with a fixed batch do, and tokens beyond a row's own
  output are thrown away;
- static, ended rows left out: the same, but a sequence that has its output leaves the batch and costs nothing
  more. No peer works so; this mode shows how much of continuous batching's gain comes from refilling the
  batch;
- continuous: ``c`` requests in flight, a new one as soon as one ends.

Modes are interleaved and repeated; the figures are medians of output tokens per second.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from benchmarks.engine_setup import LoadedEngine, load_engine
from benchmarks.report import Report
from engines.api import SamplingParams, SequenceRequest

__all__ = ["main"]

CONCURRENCIES = (1, 2, 4, 8, 16, 32)
PROMPT_TOKENS = (16, 256)
OUTPUT_TOKENS = (8, 256)


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests, drawn once from a seed: the prompt ids and the output length of each."""

    prompts: tuple[tuple[int, ...], ...]
    output_tokens: tuple[int, ...]

    @classmethod
    def draw(cls, num_requests: int, vocab_size: int, seed: int) -> Workload:
        rng = random.Random(seed)
        prompts = tuple(
            tuple(rng.randrange(vocab_size) for _ in range(_log_uniform(rng, *PROMPT_TOKENS)))
            for _ in range(num_requests)
        )
        return cls(prompts, tuple(_log_uniform(rng, *OUTPUT_TOKENS) for _ in range(num_requests)))

    @property
    def total_output_tokens(self) -> int:
        return sum(self.output_tokens)


class Progress(Protocol):
    def __call__(self, mode: str, concurrency: int, tokens_per_s: float) -> None: ...


def main(
    out: Path,
    model: Path | None = None,
    num_requests: int = 64,
    repeats: int = 3,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> dict[str, float]:
    """Runs the benchmark and writes its report to ``out``.

    Args:
        model: a Hugging Face folder; if None, random weights of SmolLM2-135M's shape in bf16.

    Returns:
        The figures by name.
    """
    engine = load_engine(model)
    workload = Workload.draw(num_requests, engine.vocab_size, seed)
    runs: dict[tuple[str, int], list[float]] = {}
    _run_continuous(engine, Workload.draw(4, engine.vocab_size, seed + 1), 4)  # warms kernels and pages up
    for _ in range(repeats):
        for concurrency in CONCURRENCIES:
            for mode, run in MODES.items():
                if (mode == "sequential") != (concurrency == 1):
                    continue  # one request at a time is the same in all modes
                started = time.perf_counter()
                run(engine, workload, concurrency)
                tokens_per_s = workload.total_output_tokens / (time.perf_counter() - started)
                runs.setdefault((mode, concurrency), []).append(tokens_per_s)
                if on_progress is not None:
                    on_progress(mode, concurrency, tokens_per_s)
    medians = {key: statistics.median(values) for key, values in runs.items()}
    for mode in MODES:
        medians[mode, 1] = medians["sequential", 1]
    return _report(out, engine, workload, medians, runs, repeats)


def _run_sequential(engine: LoadedEngine, workload: Workload, concurrency: int) -> None:
    _run_continuous(engine, workload, 1)


def _run_static(engine: LoadedEngine, workload: Workload, concurrency: int) -> None:
    padded = [
        max(workload.output_tokens[first : first + concurrency])
        for first in range(0, len(workload.prompts), concurrency)
        for _ in workload.prompts[first : first + concurrency]
    ]
    _run_batches(engine, replace(workload, output_tokens=tuple(padded)), concurrency)


def _run_batches(engine: LoadedEngine, workload: Workload, concurrency: int) -> None:
    requests = _requests(engine, workload)
    for first in range(0, len(requests), concurrency):
        batch = requests[first : first + concurrency]
        for request in batch:
            engine.submit(request)
        _finish(engine, len(batch))


def _run_continuous(engine: LoadedEngine, workload: Workload, concurrency: int) -> None:
    waiting = _requests(engine, workload)[::-1]
    in_flight = 0
    while waiting or in_flight:
        while waiting and in_flight < concurrency:
            engine.submit(waiting.pop())
            in_flight += 1
        in_flight -= engine.step_and_count_finished()


MODES: dict[str, Callable[[LoadedEngine, Workload, int], None]] = {
    "sequential": _run_sequential,
    "static": _run_static,
    "static, ended rows left out": _run_batches,
    "continuous": _run_continuous,
}


def _finish(engine: LoadedEngine, count: int) -> None:
    while count:
        count -= engine.step_and_count_finished()


def _requests(engine: LoadedEngine, workload: Workload) -> list[SequenceRequest]:
    return [
        SequenceRequest(
            sequence_id=engine.next_sequence_id(),
            replica_id=engine.replica_id,
            prompt_ids=np.array(prompt, np.int32),
            sampling=SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True),
        )
        for prompt, length in zip(workload.prompts, workload.output_tokens, strict=True)
    ]


def _log_uniform(rng: random.Random, low: int, high: int) -> int:
    return round(math.exp(rng.uniform(math.log(low), math.log(high))))


def _report(
    out: Path,
    engine: LoadedEngine,
    workload: Workload,
    medians: dict[tuple[str, int], float],
    runs: dict[tuple[str, int], list[float]],
    repeats: int,
) -> dict[str, float]:
    sequential = medians["sequential", 1]
    figures = {
        "continuous_over_sequential_16": medians["continuous", 16] / sequential,
        "continuous_over_static_16": medians["continuous", 16] / medians["static", 16],
        "continuous_over_static_without_ended_rows_16": medians["continuous", 16]
        / medians["static, ended rows left out", 16],
        "continuous_tokens_per_s_16": medians["continuous", 16],
        "sequential_tokens_per_s": sequential,
    }
    report = Report(out, "Sequential, static and continuous batching")
    report.text(
        f"{len(workload.prompts)} requests on {engine.description}: prompts of {PROMPT_TOKENS[0]} to "
        f"{PROMPT_TOKENS[1]} tokens and outputs of {OUTPUT_TOKENS[0]} to {OUTPUT_TOKENS[1]}, log-uniform "
        f"({workload.total_output_tokens} output tokens in all), greedy, end-of-sequence ignored. Output "
        f"tokens per second, median of {repeats} interleaved runs."
    )
    report.table(
        ["concurrency", *tuple(MODES)[1:], "continuous / static", "continuous / sequential"],
        [
            [c, *(medians[mode, c] for mode in tuple(MODES)[1:]),
             medians["continuous", c] / medians["static", c], medians["continuous", c] / sequential]
            for c in CONCURRENCIES
        ],
    )  # fmt: skip
    _plot(report.plot("batching", "Output tokens per second against concurrency"), medians)
    for name, value in figures.items():
        report.figure(name, value)
    report.data("tokens_per_s", {f"{mode}_{c}": values for (mode, c), values in runs.items()})
    report.write()
    return figures


def _plot(path: Path, medians: dict[tuple[str, int], float]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    axes.axhline(medians["sequential", 1], color="grey", linestyle="--", label="sequential")
    for mode, marker in zip(tuple(MODES)[1:], "svo", strict=True):
        values: Sequence[float] = [medians[mode, c] for c in CONCURRENCIES]
        axes.plot(CONCURRENCIES, values, marker=marker, label=mode)
    axes.set_xscale("log", base=2)
    axes.set_xticks(CONCURRENCIES, [str(c) for c in CONCURRENCIES])
    axes.set_xlabel("requests at once")
    axes.set_ylabel("output tokens per second")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
