"""The rhythm of requests: found where there is one, and not where there is none."""

from __future__ import annotations

import random
import statistics

from hypothesis import given
from hypothesis import strategies as st

from memory_manager.config import PlannerConfig
from memory_manager.policy.arrivals import ArrivalPattern, ArrivalRate, ArrivalWindow, wake_at_s


def noted(times_s: list[float]) -> ArrivalPattern:
    pattern = ArrivalPattern()
    for at_s in times_s:
        pattern.note(at_s)
    return pattern


HALF_LIFE_S = 120.0


def rate_at(times_s: list[float], now_s: float) -> float:
    rate = ArrivalRate()
    for at_s in times_s:
        rate.note(at_s, HALF_LIFE_S)
    return rate.per_s(now_s, HALF_LIFE_S)


def poisson_times_s(per_s: float, duration_s: float, seed: int) -> list[float]:
    rng, times_s = random.Random(seed), [0.0]
    while times_s[-1] < duration_s:
        times_s.append(times_s[-1] + rng.expovariate(per_s))
    return times_s


def test_a_steady_rate_is_read_more_closely_than_one_half_life_tells_it() -> None:
    """The error of a rate that one half-life tells is 0.024 here, that of one of four half-lives 0.012."""
    read = [rate_at(poisson_times_s(0.2, 4000.0, seed), 4000.0) for seed in range(40)]
    assert statistics.pstdev(read) < 0.018
    assert abs(statistics.fmean(read) - 0.2) < 0.01


def test_a_rate_that_falls_or_rises_is_followed_within_two_half_lives() -> None:
    for seed in range(10):
        often = poisson_times_s(0.4, 4000.0, seed)
        assert rate_at(often, often[-1] + 2 * HALF_LIFE_S) < 0.15
        seldom = poisson_times_s(0.01, 4000.0, seed)
        risen = [seldom[-1] + at_s for at_s in poisson_times_s(0.4, 2 * HALF_LIFE_S, seed + 100)]
        assert rate_at(seldom + risen, risen[-1]) > 0.15


def test_nothing_is_expected_before_a_rhythm_has_shown_itself() -> None:
    assert ArrivalPattern().window(0.0) is None
    assert noted([0, 60, 120, 180]).window(180) is None
    assert noted([0, 60, 120, 180, 240]).window(240) is not None


def test_the_window_closes_when_nothing_came() -> None:
    pattern = noted([0, 60, 120, 180, 240])
    window = pattern.window(241)
    assert window is not None
    assert window.earliest_s < 300 < window.latest_s
    assert pattern.window(window.latest_s + 1) is None


def test_one_interval_out_of_eight_may_be_missed() -> None:
    times_s = [60.0 * i for i in range(6)] + [60.0 * i for i in range(7, 10)]
    window = noted(times_s).window(times_s[-1])
    assert window is not None
    assert window.earliest_s < times_s[-1] + 60 < window.latest_s


def test_the_wake_ends_before_the_window_begins() -> None:
    config = PlannerConfig(prewake_margin_s=1.0)
    assert wake_at_s(ArrivalWindow(100.0, 110.0), 4.0, config) == 93.0


@given(
    period_s=st.floats(10, 5000),
    burst=st.lists(st.floats(0, 1.5), max_size=5),
    jitter=st.floats(0, 0.03),
    seed=st.integers(0, 1000),
)
def test_what_is_periodic_is_expected_when_it_comes(
    period_s: float, burst: list[float], jitter: float, seed: int
) -> None:
    draw = random.Random(seed)
    pattern, num_expected = ArrivalPattern(), 0
    for round_number in range(30):
        starts_s = period_s * (round_number + draw.uniform(-jitter, jitter))
        if round_number >= 10:
            window = pattern.window(starts_s)
            if window is not None:
                num_expected += window.earliest_s <= starts_s
                assert window.latest_s - window.earliest_s <= 0.6 * period_s
        at_s = starts_s
        for gap_s in burst:
            pattern.note(at_s)
            at_s += min(gap_s, period_s / 20)
        pattern.note(at_s)
    assert num_expected >= (20 if jitter < 0.004 else 10)


@given(mean_s=st.floats(5, 1000), seed=st.integers(0, 1000))
def test_what_comes_at_random_is_seldom_expected(mean_s: float, seed: int) -> None:
    draw = random.Random(seed)
    pattern, at_s, num_expected = ArrivalPattern(), 0.0, 0
    for _ in range(200):
        at_s += draw.expovariate(1 / mean_s)
        pattern.note(at_s)
        num_expected += pattern.window(at_s) is not None
    assert num_expected <= 20
