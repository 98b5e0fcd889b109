"""The time of one request by where it went, as its caller is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.api import SamplingParams
from router.request.request import GenerationRequest
from router.telemetry.metrics import Gauges, Metrics
from router.telemetry.request_metrics import RequestMetrics
from router.telemetry.waits import Spent, Waited


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def begin(clock: Clock, waited: Waited, n: int = 1) -> RequestMetrics:
    """A request that a worker has now, after that wait."""
    arrival_s = clock.now_s - sum(waited)
    request = GenerationRequest("r", "m", (1, 2), SamplingParams(), n=n, arrival_s=arrival_s)
    return Metrics(Gauges, clock=clock).request(request, waited, None)


def test_before_the_first_token_all_of_it_is_prefill() -> None:
    clock = Clock()
    measured = begin(clock, Waited(0.5, 0.25))
    clock.now_s += 2
    assert measured.timings() == (None, Spent(0.5, 0.25, 2.0, None), None)


def test_a_single_token_has_no_rate() -> None:
    clock = Clock()
    measured = begin(clock, Waited(0.5, 0.25))
    clock.now_s += 1
    measured.tokens(0, 1)
    assert measured.timings() == (1.75, Spent(0.5, 0.25, 1.0, 0.0), None)


def test_of_several_choices_the_slowest_ends_the_prefill() -> None:
    clock = Clock()
    measured = begin(clock, Waited(), n=2)
    for at_s, index in ((1.0, 0), (2.0, 1), (3.0, 0), (5.0, 1)):
        clock.now_s = 100.0 + at_s
        measured.tokens(index, 1)
    assert measured.timings() == (2.0, Spent(0.0, 0.0, 2.0, 3.0), 3 / 4)


SECONDS = st.floats(0, 1000)


@given(SECONDS, SECONDS, st.lists(st.tuples(SECONDS, st.integers(1, 64)), min_size=1, max_size=20))
def test_the_parts_make_up_the_whole(
    queue_s: float, wake_s: float, arrivals: list[tuple[float, int]]
) -> None:
    clock = Clock()
    measured = begin(clock, Waited(queue_s, wake_s))
    began_s = clock.now_s - queue_s - wake_s
    for after_s, num_tokens in arrivals:
        clock.now_s += after_s
        measured.tokens(0, num_tokens)
    ttft_s, spent, tokens_per_s = measured.timings()
    assert spent.prefill_s is not None
    assert spent.decode_s is not None
    assert ttft_s == pytest.approx(spent.queue_s + spent.wake_s + spent.prefill_s)
    assert ttft_s + spent.decode_s == pytest.approx(clock.now_s - began_s)
    if tokens_per_s is not None:
        num_later = sum(num_tokens for _, num_tokens in arrivals[1:])
        assert tokens_per_s * spent.decode_s == pytest.approx(num_later)
