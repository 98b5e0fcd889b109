"""Costs of the torch engine's steps on this machine, for simulations of it."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.engine_setup import LoadedEngine, load_engine
from benchmarks.traces import TraceSpec
from engines.api import SamplingParams, SequenceRequest
from ops.capacity.machine import StepCosts

__all__ = ["filling_per_s", "fit_step_costs", "mean_lengths", "measure_step_costs"]


def measure_step_costs(folders: Iterable[Path], num_prompt: float, num_output: float) -> StepCosts:
    """Loads models and fits what their steps cost with sequences in the middle of their outputs.

    Args:
        num_prompt, num_output: tokens, means.
    """
    engines = [load_engine(folder) for folder in folders]
    return fit_step_costs(engines, context=round(num_prompt + num_output / 2))


def mean_lengths(trace: TraceSpec) -> tuple[float, float]:
    """Tokens of a prompt and of an output, in the middle between least and most."""
    return statistics.fmean(trace.prompt_tokens), statistics.fmean(trace.output_tokens)


def filling_per_s(
    costs: StepCosts, num_models: int, kv_tokens: int, num_prompt: float, num_output: float
) -> float:
    """Requests per second that fill the KV, if each model takes steps in turn."""
    num_sequences = kv_tokens / (num_prompt + num_output)
    round_s = num_models * costs.step_s + num_sequences * costs.decode_s
    return num_sequences / (num_output * round_s)


def fit_step_costs(engines: Sequence[LoadedEngine], context: int, num_steps: int = 24) -> StepCosts:
    """Times steps of the engines, some with decodes alone, some with one prefill, and fits what each part costs. They
    take turns, as models of one worker do, so that each finds the caches full of another's weights.

    Args:
        context: tokens of each sequence that decodes, since attention reads them all.
    """
    rows, seconds = [], []
    rng = np.random.default_rng(0)

    def submit(engine: LoadedEngine, num_tokens: int, max_tokens: int) -> None:
        sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        prompt = rng.integers(0, engine.vocab_size, num_tokens).astype(np.int32)
        engine.submit(SequenceRequest(engine.next_sequence_id(), engine.replica_id, prompt, sampling))

    num_running = 0

    def timed() -> list[float]:
        nonlocal num_running
        times_s = []
        for engine in engines:
            began_s = time.perf_counter()
            num_running -= engine.step_and_count_finished()
            times_s.append(time.perf_counter() - began_s)
        return times_s

    for num_decodes in (1, 2, 4, 8, 12):
        num_prompt_steps = num_decodes + 1  # at most: each takes one prompt at least
        for engine in engines:
            for _ in range(num_decodes):
                submit(engine, context, num_prompt_steps + num_steps + 1)
        num_running = num_decodes * len(engines)
        for _ in range(num_prompt_steps):
            timed()
        rows.append((1, num_decodes, 0))
        seconds.append(statistics.median(itertools.chain(*(timed() for _ in range(num_steps)))))
        while num_running:
            timed()
    for num_tokens in (32, 64, 128, 256):
        times_s = []
        for _ in range(5):
            for engine in engines:
                submit(engine, num_tokens, 1)
            times_s += timed()
        rows.append((1, 0, num_tokens))
        seconds.append(statistics.median(times_s))
    weights = 1 / np.array(seconds)  # relative errors count
    solution = np.linalg.lstsq(np.array(rows) * weights[:, None], np.ones(len(rows)), rcond=None)[0]
    step_s, decode_s, prefill_token_s = np.maximum(solution, 1e-7).tolist()
    return StepCosts(step_s, decode_s, prefill_token_s)
