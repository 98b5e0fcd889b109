"""Killers among innocents: each killer fails, each innocent ends well, and few workers die for it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from router.dispatch.suspects import Suspects

NEVER = 10**9
LOST_TOKENS = 7  # by which the router's view lags behind at a death, at most


@dataclass
class Simulated:
    """One request of the simulated router.

    Attributes:
        length: tokens after which it ends.
        kills_at: the output token at which it kills its worker.
        kills_after: tokens since it was submitted at which it kills its worker.
        arrives: step from which it may run.
        delay: steps after a death until it is ready to run again.
    """

    length: int
    kills_at: int = NEVER
    kills_after: int = NEVER
    arrives: int = 0
    delay: int = 0
    tokens: int = 0
    tokens_at_start: int = 0
    running: bool = False

    @property
    def kills_now(self) -> bool:
        return self.tokens + 1 >= self.kills_at or self.tokens + 1 - self.tokens_at_start >= self.kills_after


class Simulation:
    """A worker that runs what it is given, one token a step for up to ``max_batch`` requests in turn."""

    def __init__(self, requests: list[Simulated], max_batch: int = NEVER, lost_tokens: int = 0) -> None:
        self.suspects = Suspects[int](clear_after_tokens=LOST_TOKENS + 1, killed_again_s=60)
        self.requests = dict(enumerate(requests))
        self.max_batch = max_batch
        self.lost_tokens = lost_tokens
        self.finished: set[int] = set()
        self.failed: set[int] = set()
        self.num_deaths = 0

    def run(self) -> None:
        for step in range(100_000):
            if not self.requests:
                return
            self.start_what_may(step)
            self.step(step)
        raise AssertionError("somebody waits for ever")

    def start_what_may(self, step: int) -> None:
        for key, request in self.requests.items():
            if not request.running and request.arrives <= step:
                if key in self.suspects:
                    self.suspects.wait(key)
                else:
                    self.start(key)
        for key in self.suspects.begin_trials():
            self.start(key)

    def start(self, key: int) -> None:
        request = self.requests[key]
        request.running = True
        request.tokens_at_start = request.tokens

    def step(self, step: int) -> None:
        running = [key for key, request in self.requests.items() if request.running]
        first = step % len(running) if running else 0
        in_step = (running[first:] + running[:first])[: self.max_batch]
        if any(self.requests[key].kills_now for key in in_step):
            self.die(step, running, in_step)
            return
        for key in in_step:
            request = self.requests[key]
            request.tokens += 1
            self.suspects.progressed(key, request.tokens - request.tokens_at_start)
            if request.tokens >= request.length:
                self.end(key, self.finished)

    def die(self, step: int, running: list[int], in_step: list[int]) -> None:
        self.num_deaths += 1
        guilty = self.suspects.died(in_step, killed=False, now_s=float(step))
        if guilty is not None:
            self.end(guilty, self.failed)
        for key in running:
            if key in self.requests:
                self.suspects.stop(key)
                request = self.requests[key]
                request.running = False
                request.arrives = step + 1 + request.delay
                request.tokens = max(request.tokens_at_start, request.tokens - self.lost_tokens)

    def end(self, key: int, into: set[int]) -> None:
        into.add(key)
        del self.requests[key]
        self.suspects.forget(key)


def num_halvings(num_requests: int) -> int:
    return math.ceil(math.log2(num_requests))


@settings(max_examples=300)
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=64), data=st.data())
def test_any_killers_in_one_step_are_found_in_about_as_many_deaths_as_there_are_halvings(
    lengths: list[int], data: st.DataObject
) -> None:
    killers = data.draw(st.sets(st.integers(0, len(lengths) - 1)))
    requests = [
        Simulated(length, kills_at=1 if key in killers else NEVER) for key, length in enumerate(lengths)
    ]
    simulation = Simulation(requests)
    simulation.run()
    assert simulation.failed == killers
    assert simulation.finished == set(range(len(lengths))) - killers
    assert simulation.num_deaths <= max(len(killers) * (num_halvings(len(lengths)) + 2), 0)


innocents = st.builds(
    Simulated, length=st.integers(1, 60), arrives=st.integers(0, 60), delay=st.integers(0, 9)
)
killers = st.builds(
    Simulated,
    length=st.just(1000),
    kills_at=st.integers(1, 80),
    arrives=st.integers(0, 60),
    delay=st.integers(0, 9),
)
batches = st.one_of(st.integers(1, 8), st.just(NEVER))


@settings(max_examples=300)
@given(
    st.lists(innocents, max_size=16),
    st.lists(killers, max_size=2),
    batches,
    st.integers(0, LOST_TOKENS),
)
def test_killers_that_come_and_kill_whenever_they_like_fail_and_nobody_else(
    innocents: list[Simulated], killers: list[Simulated], max_batch: int, lost_tokens: int
) -> None:
    requests = killers + innocents
    simulation = Simulation(requests, max_batch, lost_tokens)
    simulation.run()
    assert simulation.failed == set(range(len(killers)))
    assert simulation.finished == set(range(len(killers), len(requests)))
    assert simulation.num_deaths <= 2 * len(killers) * (num_halvings(max(len(requests), 1)) + 2)
