"""What the sharing benchmark concludes from curves."""

from __future__ import annotations

import pytest

from benchmarks.replay import Summary, Targets, Timing, summarize
from benchmarks.sharing_figures import compare, highest_load


def curve(*points: tuple[float, float, float]) -> dict[float, Summary]:
    """From (load, attainment, p99 TTFT); goodput is the attained part of the load."""
    return {
        load: Summary(attainment, load * attainment, 0.1, ttft_p99_s, 0.1, 100, 0)
        for load, attainment, ttft_p99_s in points
    }


ELASTIC = curve((1, 1.0, 0.1), (2, 0.99, 0.2), (4, 0.9, 0.5), (8, 0.2, 9.0))
STATIC = curve((1, 1.0, 0.2), (2, 0.92, 1.0), (4, 0.3, 5.0))
SWAP = curve((1, 0.5, 2.0), (2, 0.25, 6.0))


def test_figures_are_read_at_the_loads_that_they_are_defined_for() -> None:
    figures = compare(ELASTIC, STATIC, SWAP, duration_s=60)
    assert figures["ttft_p99_load_per_s"] == 2
    assert figures["ttft_p99_static_over_elastic"] == pytest.approx(5)
    assert figures["goodput_elastic_over_static"] == pytest.approx(2)
    assert figures["goodput_elastic_over_swap"] == pytest.approx(2 * 0.99 / 0.5)


def test_what_the_curves_cannot_tell_is_left_out() -> None:
    never = curve((1, 0.5, 1.0))
    assert "goodput_elastic_over_static" not in compare(ELASTIC, never, SWAP, 60)
    assert compare(never, never, SWAP, 60) == {}


def test_a_policy_that_attains_nothing_counts_as_one_request() -> None:
    dead = curve((1, 0.0, 9.0), (2, 0.0, 9.0))
    figures = compare(ELASTIC, STATIC, dead, duration_s=50)
    assert figures["goodput_elastic_over_swap"] == pytest.approx(2 * 0.99 * 50)


def test_a_load_above_one_that_was_missed_does_not_count() -> None:
    assert highest_load(curve((1, 1.0, 0), (2, 0.5, 0), (4, 1.0, 0)), 0.99) == 1
    assert highest_load(curve((1, 0.98, 0)), 0.99) is None
    assert highest_load({}, 0.99) is None


def test_a_request_is_attained_with_both_targets_and_without_an_error() -> None:
    targets = Targets(ttft_s=1.0, tpot_s=0.1)
    timings = [
        Timing(first_s=0.5, last_s=1.4, num_tokens=10, end_s=1.4),
        Timing(first_s=1.5, last_s=1.6, num_tokens=2, end_s=1.6),  # its first token came late
        Timing(first_s=0.5, last_s=2.5, num_tokens=11, end_s=2.5),  # 0.2 s a token
        Timing(first_s=0.5, last_s=0.6, num_tokens=3, end_s=0.7, error="UNAVAILABLE"),
        Timing(end_s=30.0, error="given up"),
    ]
    summary = summarize(timings, targets, duration_s=2.0)
    assert summary.attainment == pytest.approx(1 / 5)
    assert summary.goodput_per_s == pytest.approx(0.5)
    assert (summary.num_requests, summary.num_failed) == (5, 2)
    assert 1.5 < summary.ttft_p99_s <= 30.0
