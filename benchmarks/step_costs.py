"""Costs of the torch engine's steps on this machine, for simulations of a server on it."""

from __future__ import annotations

import asyncio
import itertools
import statistics
from collections.abc import Iterable
from pathlib import Path

from benchmarks.replay import Targets
from benchmarks.sharing_policies import Arrangement, Budget, SharingPolicy, write_config
from benchmarks.streams import Stream, run_streams
from benchmarks.traces import TraceRequest, TraceSpec
from memory_manager.policy.step_model import StepCosts
from ops.running_server import RunningServer

__all__ = ["DRAWN_S", "filling_per_s", "mean_lengths", "measure_step_costs", "step_costs_of"]

DRAWN_S = 75.0
"""Length of a trace of one request per second whose requests are enough to measure what steps cost."""

_AT_ONCE = (2, 6, 12, 4, 9, 1, 12, 3)
_IN_TURN = 2  # requests for each that runs at a time
_NO_HURRY = Targets(600.0, 60.0)


def measure_step_costs(
    arrangement: Arrangement, requests: Iterable[TraceRequest], scratch: Path, num_threads: int | None = None
) -> StepCosts:
    """Serves models that all fit, now with few requests at a time and now with many, and asks the server what their
    steps cost: the mean over the models. So the costs have in them what router, client and the other models' weights
    in the caches take of the machine.

    Args:
        requests: these are sent in turn, again and again, whatever their times.
        scratch: folder for the server's data.
        num_threads: threads that torch computes with; None leaves the engine's own choice.
    """
    config = scratch / "step-costs.toml"
    write_config(arrangement, Budget.ALL, SharingPolicy.ELASTIC, _NO_HURRY, config, num_threads)
    streams = itertools.cycle(
        [Stream(each.model, each.prompt_token_ids, each.max_tokens, 0.0, each.seed) for each in requests]
    )
    with RunningServer(scratch / "step-costs", {}, config=config) as server:
        for at_once in _AT_ONCE:
            chosen = list(itertools.islice(streams, _IN_TURN * at_once))
            asyncio.run(run_streams(server.grpc_target, chosen, at_once))
        return step_costs_of(server)


def step_costs_of(server: RunningServer) -> StepCosts:
    """Asks a server what its models' steps cost lately: the mean over those that have taken any."""
    costs = [each["step_costs"] for each in server.status()["deployments"] if each["step_costs"]]
    return StepCosts(*(statistics.fmean(each[part] for each in costs) for part in StepCosts.__slots__))


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
