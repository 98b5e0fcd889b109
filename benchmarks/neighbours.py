"""Effects of residency on the users of a real server: the first token of a sleeping model, and a neighbour's
stream while another model loads and wakes.

Three models of one size. The first model serves. The other two take turns on a device that has room for one
of them and in a host cache that has room for one copy beside the first model's, so that each can be made to
load from storage again and again.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import grpc.aio
import numpy as np
import psutil

from benchmarks.streams import Stream, generate_request
from engines.checkpoint.model_config import ModelConfig, describe, kv_groups
from memory_manager.kv_spec import PAGE_BYTES, kv_bytes_for_tokens, round_to_pages
from mooring.errors import MooringError
from mooring.v1 import inference_pb2_grpc
from ops.running_server import RunningServer

__all__ = ["Neighbours", "least_stolen", "measure_neighbours", "write_neighbours_config"]

SERVING, FIRST, SECOND = "serving", "first", "second"
_PROMPT_TOKENS = 32
_LITTLE_STOLEN = 0.005  # of the cores' time during a round


@dataclass(slots=True)
class Neighbours:
    """Every measurement, in seconds.

    Attributes:
        quiet_itl_s: gaps between the serving model's tokens while nothing else happens.
        wake_itl_s: gaps that overlap a wake of another model.
        load_itl_s: gaps that overlap a load of another model.
        idle_wake_s: durations of wakes while nothing was served.
        busy_wake_s: durations of wakes beside the stream.
        idle_load_s: durations of loads while nothing was served.
        busy_load_s: durations of loads beside the stream.
        first_token_s: from a request to a model that slept until its first token.
        wake_s: durations of the wakes in these.
        prefill_s: from a request to a resident model until its first token: the part of a first token that is
            not the wake.
        asleep_bytes: the most weights that a sleeping model held, by the server's figure; its KV it keeps.
        stolen_shares: share of the cores' time that the hypervisor gave to other guests, in each round that
            counts.
        left_out: rounds that do not count because that share was higher, if there were enough others.
    """

    quiet_itl_s: list[float] = field(default_factory=list)
    wake_itl_s: list[float] = field(default_factory=list)
    load_itl_s: list[float] = field(default_factory=list)
    idle_wake_s: list[float] = field(default_factory=list)
    busy_wake_s: list[float] = field(default_factory=list)
    idle_load_s: list[float] = field(default_factory=list)
    busy_load_s: list[float] = field(default_factory=list)
    first_token_s: list[float] = field(default_factory=list)
    wake_s: list[float] = field(default_factory=list)
    prefill_s: list[float] = field(default_factory=list)
    asleep_bytes: int = 0
    stolen_shares: list[float] = field(default_factory=list)
    left_out: Neighbours | None = None

    def take(self, other: Neighbours) -> None:
        """Adds the measurements of ``other``."""
        for each in fields(Neighbours):
            values = getattr(self, each.name)
            if isinstance(values, list):
                values += getattr(other, each.name)

    @property
    def p99_ratio(self) -> float:
        return self._over_quiet(self.wake_itl_s + self.load_itl_s)

    @property
    def p99_ratio_of_all(self) -> float:
        """The ratio over all rounds, with those that are left out."""
        every = Neighbours()
        for each in (self, self.left_out or Neighbours()):
            every.take(each)
        return every.p99_ratio

    def _over_quiet(self, itl_s: list[float]) -> float:
        return float(np.percentile(itl_s, 99) / np.percentile(self.quiet_itl_s, 99))

    def figures(self) -> dict[str, float]:
        ratios = [
            first / (wake + prefill)
            for first, wake, prefill in zip(self.first_token_s, self.wake_s, self.prefill_s, strict=True)
        ]
        return {
            "wake_to_first_token_ratio": statistics.median(ratios),
            "neighbour_itl_p99_ratio": self.p99_ratio,
            "neighbour_itl_p99_ratio_all_rounds": self.p99_ratio_of_all,
            "neighbour_itl_p99_ratio_wake": self._over_quiet(self.wake_itl_s),
            "neighbour_itl_p99_ratio_load": self._over_quiet(self.load_itl_s),
            "neighbour_wake_over_idle": statistics.median(self.busy_wake_s)
            / statistics.median(self.idle_wake_s),
            "neighbour_load_over_idle": statistics.median(self.busy_load_s)
            / statistics.median(self.idle_load_s),
            "asleep_bytes_of_server": self.asleep_bytes,
        }


def write_neighbours_config(
    path: Path, folders: Mapping[str, Path], max_model_len: int, num_threads: int | None = None
) -> None:
    """Writes the settings of a server with ``SERVING``, ``FIRST`` and ``SECOND``, which have one shape and
    are in bf16."""
    description = describe(folders[SERVING])
    weights_bytes = round_to_pages(description.weights_bytes("bf16")) + PAGE_BYTES
    kv_bytes = kv_bytes_for_tokens(kv_groups(ModelConfig.from_dict(description.config), 2), max_model_len)
    lines = [
        f"memory_budget = {2 * weights_bytes + 4 * kv_bytes + PAGE_BYTES}",
        f"host_cache_budget = {2 * weights_bytes}",
        'dtype = "bfloat16"',
    ]
    for name, folder in folders.items():
        lines += ["[[models]]", f'name = "{name}"', f'source = "{folder}"']
        lines += [f"max_model_len = {max_model_len}"]
    # As on a GPU; a CPU need not copy at all.
    lines += ["[torch]", 'cpu_wake = "copy"']
    if num_threads is not None:
        lines += [f"num_threads = {num_threads}"]
    path.write_text("\n".join(lines) + "\n")


def measure_neighbours(
    server: RunningServer, vocab_size: int, repeats: int, stream_tokens: int
) -> Neighbours:
    """Measures first tokens ``repeats`` times, and then as many rounds beside a stream, quiet and disturbed
    in turn."""
    return asyncio.run(_Measurement(server, vocab_size, stream_tokens).run(repeats))


def least_stolen(rounds: Sequence[Neighbours], num_wanted: int) -> set[int] | None:
    """Numbers of the rounds in which other guests had the cores least: their use of the cores says nothing
    about us.

    Args:
        rounds: one ``stolen_shares`` each.

    Returns:
        ``num_wanted`` numbers; None if more rounds should be run: until next to nothing was stolen in so many
        rounds, or there are twice as many to choose from.
    """
    by_share = sorted(range(len(rounds)), key=lambda number: rounds[number].stolen_shares[0])
    quiet = sum(found.stolen_shares[0] <= _LITTLE_STOLEN for found in rounds)
    if quiet < num_wanted and len(rounds) < 2 * num_wanted:
        return None
    return set(by_share[:num_wanted])


@dataclass(slots=True)
class _Span:
    start_s: float
    end_s: float


class _Measurement:
    def __init__(self, server: RunningServer, vocab_size: int, stream_tokens: int) -> None:
        self._server = server
        self._vocab_size = vocab_size
        self._stream_tokens = stream_tokens
        self._rng = random.Random(0)
        self._found = Neighbours()

    async def run(self, repeats: int) -> Neighbours:
        async with grpc.aio.insecure_channel(self._server.grpc_target) as channel:
            self._stub = inference_pb2_grpc.InferenceStub(channel)  # type: ignore[no-untyped-call]
            for model in (SERVING, FIRST, SECOND, FIRST):  # touches every page that will be used
                await self._first_token_s(model)
                if model != SERVING:
                    await self._sleep(model)
            for _ in range(repeats):
                await self._measure_first_token()
            await self._measure_rounds(repeats)
        return self._found

    async def _measure_first_token(self) -> None:
        """Measures one first token of ``FIRST``, which sleeps before and after."""
        before_s = self._server.transitions("waking")[0]
        self._found.first_token_s.append(await self._first_token_s(FIRST))
        self._found.wake_s.append(self._server.transitions("waking")[0] - before_s)
        self._found.prefill_s.append(await self._first_token_s(FIRST))
        await self._sleep(FIRST)
        status = await asyncio.to_thread(self._server.status)
        for deployment in status["deployments"]:
            if deployment["name"] == FIRST:
                held = sum(each["lease_bytes"] for each in deployment["replicas"])
                self._found.asleep_bytes = max(self._found.asleep_bytes, held)

    async def _measure_rounds(self, repeats: int) -> None:
        rounds: list[Neighbours] = []
        while (kept := least_stolen(rounds, repeats)) is None:
            before = psutil.cpu_times()
            found = await self._measure_stream()
            after = psutil.cpu_times()
            all_s = sum(after[:8]) - sum(
                before[:8]
            )  # the fields after them, guests' time, are in user time already
            found.stolen_shares = [(after.steal - before.steal) / all_s]
            rounds.append(found)
        self._found.left_out = Neighbours()
        for number, found in enumerate(rounds):
            (self._found if number in kept else self._found.left_out).take(found)

    async def _measure_stream(self) -> Neighbours:
        """Measures a wake and a load alone; then a quiet stretch of a stream, and both moves beside it."""
        found = Neighbours()
        found.idle_wake_s.append((await self._move(FIRST)).seconds)
        await self._sleep(FIRST)
        found.idle_load_s.append((await self._move(SECOND)).seconds)
        await self._sleep(SECOND)
        await self._move(FIRST)
        await self._sleep(FIRST)
        arrivals: list[float] = []
        streaming = asyncio.create_task(self._stream(arrivals))

        async def rest(num_tokens: int = 2) -> None:
            """Waits until so many more tokens have arrived, so that the next request is no part of the gaps
            before."""
            enough = len(arrivals) + num_tokens
            while len(arrivals) < enough:
                if streaming.done():
                    streaming.result()
                    raise MooringError(
                        "the stream ended before the other model had come: give it more tokens"
                    )
                await asyncio.sleep(0.01)

        await rest(self._stream_tokens // 4)
        disturbed = time.monotonic()
        wake = await self._move(FIRST, rest)
        await self._sleep(FIRST)
        load = await self._move(SECOND, rest)
        await self._sleep(SECOND)
        await rest()
        rested = time.monotonic()
        await streaming
        await self._move(FIRST)
        await self._sleep(FIRST)
        found.busy_wake_s.append(wake.seconds)
        found.busy_load_s.append(load.seconds)
        found.quiet_itl_s += _gaps(arrivals, _Span(0.0, disturbed), inside=True)
        found.quiet_itl_s += _gaps(arrivals, _Span(rested, np.inf), inside=True)
        found.wake_itl_s += _gaps(arrivals, wake.span, inside=False)
        found.load_itl_s += _gaps(arrivals, load.span, inside=False)
        return found

    async def _move(self, model: str, rest: Callable[[], Awaitable[None]] | None = None) -> _Move:
        """Makes a model resident, from wherever it is.

        Args:
            rest: awaited between the move and each question to the server for how long moves took.
        """
        before_s = self._server.transitions("waking", "loading")[0]
        if rest is not None:
            await rest()
        start_s = time.monotonic()
        await self._admin(f"/deployments/{model}/wake")
        span = _Span(start_s, time.monotonic())
        if rest is not None:
            await rest()
        return _Move(span, self._server.transitions("waking", "loading")[0] - before_s)

    async def _sleep(self, model: str) -> None:
        await self._admin(f"/deployments/{model}/sleep")

    async def _admin(self, path: str) -> None:
        response = await asyncio.to_thread(self._server.admin, "POST", path)
        if response.status_code != 204:
            raise MooringError(f"POST {path}: {response.text}")

    async def _first_token_s(self, model: str) -> float:
        started_s = time.monotonic()
        call = self._stub.Generate(generate_request(self._request(model, 1)))
        async for _ in call:
            break
        seconds = time.monotonic() - started_s
        async for _ in call:
            pass
        return seconds

    async def _stream(self, arrivals: list[float]) -> None:
        async for response in self._stub.Generate(
            generate_request(self._request(SERVING, self._stream_tokens))
        ):
            arrivals += [time.monotonic() for choice in response.choices if choice.tokens]

    def _request(self, model: str, max_tokens: int) -> Stream:
        prompt = tuple(self._rng.randrange(self._vocab_size) for _ in range(_PROMPT_TOKENS))
        return Stream(model, prompt, max_tokens, 0.0, 0)


@dataclass(slots=True)
class _Move:
    """A wake or a load. ``span``: its time as the caller saw it; ``seconds``: its duration by the server's
    figure."""

    span: _Span
    seconds: float


def _gaps(arrivals: list[float], span: _Span, *, inside: bool) -> list[float]:
    """Gaps between arrivals that lie wholly within the span, or that overlap it at all."""
    pairs = list(itertools.pairwise(arrivals))
    if inside:
        return [end - start for start, end in pairs if span.start_s <= start and end <= span.end_s]
    return [end - start for start, end in pairs if start < span.end_s and end > span.start_s]
