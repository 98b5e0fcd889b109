"""Runs streams through the native gRPC door, and tells whether two runs of the same stream agree.

Two runs of one stream in fp32 give the same tokens, unless two candidates are so near each other that the
last bit of a sum decides between them. ``compare`` tells that case from an altered stream: at the first
position where the runs part, both saw the same context, so each run's own log-probability of the token that
it chose, over the temperature and with that token's noise added, is the score by which the token won. Scores
within ``NEAR_TIE`` of each other are a near tie.
"""

from __future__ import annotations

import asyncio
import enum
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import grpc.aio
import numpy as np

from mooring.v1 import inference_pb2 as pb
from mooring.v1 import inference_pb2_grpc

__all__ = [
    "NEAR_TIE",
    "Agreement",
    "Outcome",
    "Stream",
    "compare",
    "count_agreements",
    "draw_streams",
    "generate_request",
    "run_stream",
    "run_streams",
]

NEAR_TIE = 1e-4


@dataclass(frozen=True, slots=True)
class Stream:
    """One request. A ``temperature`` of 0 is greedy. The seed is always given, so that runs can be
    compared."""

    model: str
    prompt_ids: tuple[int, ...]
    max_tokens: int
    temperature: float
    seed: int


@dataclass(slots=True)
class Outcome:
    """The answer to a stream: ids, each token's own log-probability, and how it ended."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str = ""
    error: str = ""


class Agreement(enum.Enum):
    """The result of comparing a run of a stream with the reference."""

    EQUAL = "equal"
    NEAR_TIE = "near_tie"
    ALTERED = "altered"
    LOST = "lost"  # the run did not finish


def draw_streams(
    models: Sequence[str],
    num_each: int,
    max_tokens: int,
    seed: int,
    vocab_size: int,
    sampled_share: float = 0.5,
) -> list[Stream]:
    """Streams over all models, with prompts of 8 to 48 random ids; ``sampled_share`` of them at temperature
    1."""
    rng = random.Random(seed)
    streams = []
    for number in range(num_each):
        for model in models:
            prompt = tuple(rng.randrange(vocab_size) for _ in range(rng.randint(8, 48)))
            temperature = 1.0 if number < num_each * sampled_share else 0.0
            streams.append(Stream(model, prompt, max_tokens, temperature, rng.getrandbits(32)))
    return streams


async def run_streams(
    target: str,
    streams: Sequence[Stream],
    at_once: int,
    on_tokens: Callable[[int, int], None] = lambda index, num_tokens: None,
) -> list[Outcome]:
    """Runs every stream, ``at_once`` of them at a time, in order.

    Args:
        target: address of the gRPC door.
        on_tokens: called at each arrival with the stream's index and how many tokens it has.
    """
    outcomes = [Outcome()] * len(streams)
    slots = asyncio.Semaphore(at_once)
    async with grpc.aio.insecure_channel(target) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)  # type: ignore[no-untyped-call]

        async def run(index: int) -> None:
            async with slots:
                note = partial(on_tokens, index)
                outcomes[index] = await run_stream(stub, streams[index], note)

        await asyncio.gather(*(run(index) for index in range(len(streams))))
    return outcomes


async def run_stream(
    stub: inference_pb2_grpc.InferenceStub,
    stream: Stream,
    on_tokens: Callable[[int], None] = lambda num_tokens: None,
) -> Outcome:
    """Runs one stream; an error goes into the outcome.

    Args:
        on_tokens: called at each arrival with how many tokens there are.
    """
    outcome = Outcome()
    try:
        async for response in stub.Generate(generate_request(stream)):
            _take(response, outcome)
            on_tokens(len(outcome.token_ids))
    except grpc.aio.AioRpcError as error:
        outcome.error = f"{error.code().name}: {error.details()}"
    return outcome


def compare(stream: Stream, reference: Outcome, outcome: Outcome) -> Agreement:
    """Compares a run of a stream with the reference."""
    if outcome.error or not outcome.finish_reason:
        return Agreement.LOST
    if outcome.token_ids == reference.token_ids:
        return Agreement.EQUAL
    pairs = zip(reference.token_ids, outcome.token_ids, strict=False)
    parting = next((i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), None)
    if parting is None:  # one is the other's beginning
        return Agreement.ALTERED
    gap = _score(stream, reference, parting) - _score(stream, outcome, parting)
    return Agreement.NEAR_TIE if abs(gap) < NEAR_TIE else Agreement.ALTERED


def count_agreements(
    streams: Sequence[Stream], references: Sequence[Outcome], outcomes: Sequence[Outcome]
) -> Counter[Agreement]:
    """Number of streams for each agreement."""
    return Counter(
        compare(stream, reference, outcome)
        for stream, reference, outcome in zip(streams, references, outcomes, strict=True)
    )


def _score(stream: Stream, outcome: Outcome, index: int) -> float:
    """The score by which the token at ``index`` won: its logit, scaled, with its noise."""
    if stream.temperature == 0:
        return outcome.logprobs[index]
    import torch  # needed only if sampled streams part

    from engines.torch.sampling.noise import gumbel_noise, row_keys, sequence_key

    token_id = outcome.token_ids[index]
    keys = row_keys(
        np.array([sequence_key(stream.seed, 0)], np.uint64),
        np.array([len(stream.prompt_ids) + index], np.int64),
    )
    noise = gumbel_noise(keys, token_id + 1, torch.device("cpu"))
    return outcome.logprobs[index] / stream.temperature + float(noise[0, token_id])


def generate_request(stream: Stream) -> pb.GenerateTextRequest:
    """The stream as the native gRPC door takes it; end-of-sequence is ignored."""
    return pb.GenerateTextRequest(
        model=stream.model,
        prompt_token_ids=pb.TokenIds(ids=stream.prompt_ids),
        max_tokens=stream.max_tokens,
        temperature=stream.temperature,
        top_p=1.0,
        top_k=0,
        repetition_penalty=1.0,
        seed=stream.seed,
        ignore_eos=True,
        logprobs=0,
    )


def _take(response: pb.GenerateTextResponse, outcome: Outcome) -> None:
    for choice in response.choices:
        for token in choice.tokens:
            outcome.token_ids.append(token.token_id)
            outcome.logprobs.append(token.logprob)
        outcome.finish_reason = choice.finish_reason or outcome.finish_reason
