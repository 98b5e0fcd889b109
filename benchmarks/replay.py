"""Replays a trace against a running server, open loop, and judges the answers by targets.

``python -m benchmarks.replay trace.jsonl --target 127.0.0.1:8001`` replays a trace through the native gRPC
door and prints what was attained. Requests are sent at their times whatever became of those before them, as
users do.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import grpc.aio
import numpy as np
import typer

from benchmarks.streams import Stream, generate_request
from benchmarks.traces import TraceRequest, read_trace
from mooring.v1 import inference_pb2 as pb
from mooring.v1 import inference_pb2_grpc

__all__ = ["Summary", "Targets", "Timing", "replay", "summarize"]


@dataclass(frozen=True, slots=True)
class Targets:
    """Targets that a request must meet to count: seconds to its first token, and seconds per token after
    it."""

    ttft_s: float
    tpot_s: float


@dataclass(slots=True)
class Timing:
    """The course of one request, in seconds since it was due.

    Attributes:
        first_s: when its first token came; None before there was any.
        last_s: when its last token so far came; None before there was any.
        num_tokens: tokens that came.
        end_s: when it finished, failed or was given up.
        error: why it did not finish; empty if it did.
    """

    first_s: float | None = None
    last_s: float | None = None
    num_tokens: int = 0
    end_s: float = 0.0
    error: str = ""

    @property
    def ttft_s(self) -> float:
        """Seconds to the first token. For a request without a token, how long it had waited when it ended,
        which is less than the truth."""
        return self.end_s if self.first_s is None else self.first_s

    @property
    def tpot_s(self) -> float:
        if self.first_s is None or self.last_s is None or self.num_tokens < 2:
            return 0.0
        return (self.last_s - self.first_s) / (self.num_tokens - 1)

    def meets(self, targets: Targets) -> bool:
        return not self.error and self.ttft_s <= targets.ttft_s and self.tpot_s <= targets.tpot_s


@dataclass(frozen=True, slots=True)
class Summary:
    """One replay, judged.

    Attributes:
        attainment: share of all requests that finished and met both targets.
        goodput_per_s: such requests per second of the trace.
        ttft_p50_s: median over all requests; see ``Timing.ttft_s`` for those without a token.
        ttft_p99_s: 99th percentile over all requests.
        tpot_p99_s: 99th percentile over all requests.
        num_requests: requests in all.
        num_failed: requests that did not finish.
    """

    attainment: float
    goodput_per_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    tpot_p99_s: float
    num_requests: int
    num_failed: int


def summarize(timings: Sequence[Timing], targets: Targets, duration_s: float) -> Summary:
    """Judges a replay of at least one request. ``duration_s``: length of the trace."""
    met = sum(each.meets(targets) for each in timings)
    ttft_s = [each.ttft_s for each in timings]
    return Summary(
        attainment=met / len(timings),
        goodput_per_s=met / duration_s,
        ttft_p50_s=float(np.percentile(ttft_s, 50)),
        ttft_p99_s=float(np.percentile(ttft_s, 99)),
        tpot_p99_s=float(np.percentile([each.tpot_s for each in timings], 99)),
        num_requests=len(timings),
        num_failed=sum(bool(each.error) for each in timings),
    )


async def replay(target: str, requests: Sequence[TraceRequest], patience_s: float) -> list[Timing]:
    """Sends every request at its time; returns the timing of each, in the order of the requests.

    Args:
        target: address of the gRPC door.
        patience_s: seconds after the last arrival for which running requests are waited for; then they count
            as failed.
    """
    timings = [Timing() for _ in requests]
    started_s = time.monotonic()
    async with grpc.aio.insecure_channel(target) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)  # type: ignore[no-untyped-call]

        async def run(request: TraceRequest, timing: Timing) -> None:
            due_s = started_s + request.at_s
            await asyncio.sleep(due_s - time.monotonic())
            try:
                async for response in stub.Generate(generate_request(_stream(request))):
                    _note_tokens(timing, time.monotonic() - due_s, response)
            except grpc.aio.AioRpcError as error:
                timing.error = f"{error.code().name}: {error.details()}"
            except asyncio.CancelledError:
                timing.error = "given up"
                raise
            finally:
                timing.end_s = time.monotonic() - due_s

        tasks = [
            asyncio.create_task(run(request, timing))
            for request, timing in zip(requests, timings, strict=True)
        ]
        last_s = max((request.at_s for request in requests), default=0.0)
        await asyncio.wait(tasks, timeout=last_s + patience_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return timings


def _note_tokens(timing: Timing, now_s: float, response: pb.GenerateTextResponse) -> None:
    num_tokens = sum(len(choice.tokens) for choice in response.choices)
    if num_tokens:
        timing.first_s = now_s if timing.first_s is None else timing.first_s
        timing.last_s = now_s
        timing.num_tokens += num_tokens


def _stream(request: TraceRequest) -> Stream:
    return Stream(request.model, request.prompt_token_ids, request.max_tokens, 0.0, request.seed)


def main(
    trace: Annotated[Path, typer.Argument(help="A file of benchmarks.traces.")],
    target: Annotated[str, typer.Option(help="Address of the gRPC door.")] = "127.0.0.1:8001",
    ttft_target_s: Annotated[float, typer.Option(help="Seconds to the first token.")] = 2.0,
    tpot_target_s: Annotated[float, typer.Option(help="Seconds per token after it.")] = 0.2,
    speed: Annotated[float, typer.Option(help="How many times as fast as the trace says.")] = 1.0,
    patience_s: Annotated[float, typer.Option(help="How long to wait after the last arrival.")] = 60.0,
) -> None:
    """Replay a trace and print what was attained."""
    requests = [replace(each, at_s=each.at_s / speed) for each in read_trace(trace)]
    timings = asyncio.run(replay(target, requests, patience_s))
    duration_s = max((each.at_s for each in requests), default=0.0) or math.inf
    summary = summarize(timings, Targets(ttft_target_s, tpot_target_s), duration_s)
    print(json.dumps({name: getattr(summary, name) for name in Summary.__slots__}, indent=2))


if __name__ == "__main__":
    typer.run(main)
