"""Traces: requests to models, with their times. Plain files that anybody can make, read and replay.

``python -m benchmarks.traces --out trace.jsonl --models a,b,c`` writes a trace. A line is one request::

    {"at_s": 0.25, "model": "a", "prompt_token_ids": [17, 4], "max_tokens": 32, "seed": 7}

Popularity follows Zipf's law over the models in the order given. Each model's requests come in bursts: it is
on and off for exponentially distributed times, and while it is on requests arrive as a Poisson process.
Lengths are log-uniform.

One seed at two rates gives the same bursts at the same times, and the k-th request of a model is the same in
both traces: they differ only in how dense the bursts are.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Annotated

import typer

from mooring.errors import ConfigurationError

__all__ = ["TraceRequest", "TraceSpec", "draw_trace", "model_shares", "read_trace", "write_trace"]


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request of a trace.

    Attributes:
        at_s: when it is sent, in seconds from the beginning of the trace.
        max_tokens: length of the output; end-of-sequence is ignored, so the length is exact.
        seed: seed of the sampling, which a greedy replay does not need.
    """

    at_s: float
    model: str
    prompt_token_ids: tuple[int, ...]
    max_tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class TraceSpec:
    """The settings from which a trace is drawn.

    Attributes:
        models: names, the most popular first.
        requests_per_s: expected rate, over all models and over the whole trace.
        duration_s: time within which all requests arrive.
        vocab_size: prompts are random ids below it.
        zipf_exponent: the k-th model's share goes with ``k ** -zipf_exponent``; 0 makes all equal.
        mean_on_s: mean length of a burst.
        mean_off_s: mean silence between two bursts of one model.
        prompt_tokens: least and most tokens of a prompt, both included.
        output_tokens: least and most tokens of an output, both included.
        seed: seed of everything random.
    """

    models: tuple[str, ...]
    requests_per_s: float
    duration_s: float
    vocab_size: int
    zipf_exponent: float = 1.0
    mean_on_s: float = 4.0
    mean_off_s: float = 8.0
    prompt_tokens: tuple[int, int] = (16, 128)
    output_tokens: tuple[int, int] = (16, 128)
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.models:
            raise ConfigurationError("a trace needs at least one model", param="models")
        for name in ("requests_per_s", "duration_s", "vocab_size", "mean_on_s"):
            if getattr(self, name) <= 0:
                raise ConfigurationError(f"{name} must be positive", param=name)
        for name in ("zipf_exponent", "mean_off_s"):
            if getattr(self, name) < 0:
                raise ConfigurationError(f"{name} cannot be negative", param=name)
        for name in ("prompt_tokens", "output_tokens"):
            low, high = getattr(self, name)
            if not 1 <= low <= high:
                raise ConfigurationError(f"{name} must be 1 <= least <= most", param=name)


def model_shares(num_models: int, zipf_exponent: float) -> list[float]:
    """Each model's share of the requests; they add up to 1."""
    weights = [rank**-zipf_exponent for rank in range(1, num_models + 1)]
    return [weight / sum(weights) for weight in weights]


def draw_trace(spec: TraceSpec) -> list[TraceRequest]:
    """The requests in the order of their arrival."""
    shares = model_shares(len(spec.models), spec.zipf_exponent)
    requests = [
        request
        for model, share in zip(spec.models, shares, strict=True)
        for request in _requests_of(spec, model, share)
    ]
    return sorted(requests, key=lambda each: each.at_s)


def _requests_of(spec: TraceSpec, model: str, share: float) -> Iterator[TraceRequest]:
    bursts = list(_bursts(spec, random.Random(f"{spec.seed}/{model}/bursts")))
    arrivals = random.Random(f"{spec.seed}/{model}/arrivals")
    on_share = spec.mean_on_s / (spec.mean_on_s + spec.mean_off_s)
    rate_while_on = spec.requests_per_s * share / on_share
    # A Poisson process of rate 1, in a time that passes only during bursts, and times the rate.
    ends = list(accumulate(end - start for start, end in bursts))
    at, burst = arrivals.expovariate(1.0) / rate_while_on, 0
    content = random.Random(f"{spec.seed}/{model}/content")
    while burst < len(bursts):
        if at >= ends[burst]:
            burst += 1
            continue
        before = ends[burst - 1] if burst else 0.0
        num_prompt = _log_uniform(content, *spec.prompt_tokens)
        yield TraceRequest(
            at_s=round(bursts[burst][0] + at - before, 6),
            model=model,
            max_tokens=_log_uniform(content, *spec.output_tokens),
            seed=content.getrandbits(31),
            prompt_token_ids=tuple(content.randrange(spec.vocab_size) for _ in range(num_prompt)),
        )
        at += arrivals.expovariate(1.0) / rate_while_on


def _bursts(spec: TraceSpec, rng: random.Random) -> Iterator[tuple[float, float]]:
    """Yields start and end of each time that a model is on; at the beginning it is on with the usual
    chance."""
    at = 0.0
    if rng.random() * (spec.mean_on_s + spec.mean_off_s) >= spec.mean_on_s:
        at = rng.expovariate(1 / spec.mean_off_s)
    while at < spec.duration_s:
        end = min(at + rng.expovariate(1 / spec.mean_on_s), spec.duration_s)
        yield at, end
        at = end + (rng.expovariate(1 / spec.mean_off_s) if spec.mean_off_s else 0.0)


def _log_uniform(rng: random.Random, low: int, high: int) -> int:
    return round(math.exp(rng.uniform(math.log(low), math.log(high))))


def write_trace(path: Path, requests: Iterable[TraceRequest]) -> None:
    """Writes the requests, one JSON object a line."""
    with path.open("w") as file:
        for request in requests:
            file.write(json.dumps(asdict(request)) + "\n")


def read_trace(path: Path) -> list[TraceRequest]:
    """The requests of a file, in the order of their arrival.

    Raises:
        ConfigurationError: a line is no request; the message says which.
    """
    requests = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            requests.append(_parse(json.loads(line)))
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigurationError(f"{path}, line {number} is no request: {error!r}") from error
    return sorted(requests, key=lambda each: each.at_s)


def _parse(raw: dict[str, object]) -> TraceRequest:
    request = TraceRequest(**raw)  # type: ignore[arg-type]  # checked below
    ids: Sequence[int] = request.prompt_token_ids
    if not isinstance(request.at_s, int | float) or not 0 <= request.at_s < math.inf:
        raise ValueError("at_s must be a number of seconds, at least 0")
    if not isinstance(request.model, str) or not request.model:
        raise ValueError("model must be a name")
    if not isinstance(ids, list) or not ids or not all(type(each) is int and each >= 0 for each in ids):
        raise ValueError("prompt_token_ids must be a list of ids")
    if type(request.max_tokens) is not int or request.max_tokens < 1 or type(request.seed) is not int:
        raise ValueError("max_tokens and seed must be whole numbers, max_tokens at least 1")
    return TraceRequest(request.at_s, request.model, tuple(ids), request.max_tokens, request.seed)


def main(
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("trace.jsonl"),
    models: Annotated[
        str, typer.Option(help="Names, the most popular first, with commas between.")
    ] = "a,b,c",
    requests_per_s: Annotated[float, typer.Option(help="Expected, over all models.")] = 2.0,
    duration_s: Annotated[float, typer.Option(help="Of the trace.")] = 60.0,
    vocab_size: Annotated[int, typer.Option(help="Prompts are random ids below it.")] = 32000,
    zipf_exponent: Annotated[float, typer.Option(help="0 makes all models equally popular.")] = 1.0,
    mean_on_s: Annotated[float, typer.Option(help="Mean length of a burst.")] = 4.0,
    mean_off_s: Annotated[float, typer.Option(help="Mean silence between two.")] = 8.0,
    seed: Annotated[int, typer.Option(help="Of everything.")] = 0,
) -> None:
    """Write a trace."""
    spec = TraceSpec(
        tuple(models.split(",")),
        requests_per_s,
        duration_s,
        vocab_size,
        zipf_exponent,
        mean_on_s,
        mean_off_s,
        seed=seed,
    )
    requests = draw_trace(spec)
    write_trace(out, requests)
    print(f"{len(requests)} requests in {out}")


if __name__ == "__main__":
    typer.run(main)
