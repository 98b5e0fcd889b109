"""How the answers of a replay are judged."""

from __future__ import annotations

import pytest

from benchmarks.replay import Targets, Timing, summarize


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
