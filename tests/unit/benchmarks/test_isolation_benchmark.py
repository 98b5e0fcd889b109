"""What is concluded from the times that an attacker saw."""

from __future__ import annotations

import random

import pytest

from benchmarks.isolation import Guesses, SeenToken, figures_of, misses_of

NUM = 1500


def guesses(
    policy: str, sooner_s: float, *, cached_tokens: int = 0, predicted_ms: int = 300, num_kept: int = NUM
) -> Guesses:
    """Times that differ by chance, and ``sooner_s`` between what the victim sent and what nobody did."""
    rng = random.Random(policy)
    sent = [
        SeenToken(rng.uniform(0.2, 0.4) - sooner_s, cached_tokens, predicted_ms if number % 2 else 300)
        for number in range(NUM)
    ]
    fresh = [SeenToken(rng.uniform(0.2, 0.4), 0, 300) for _ in range(NUM)]
    return Guesses(policy, sent, fresh, num_victim=NUM, num_kept=num_kept)


SHARED = guesses("shared", 0.19, cached_tokens=240)


def test_nothing_is_missed_where_only_sharing_tells() -> None:
    figures = figures_of(guesses("tenant", 0.0), SHARED)
    assert figures["timing_auc_low"] <= 0.5 <= figures["timing_auc_high"]
    assert figures["timing_auc_unsalted"] > 0.98
    assert figures["predicted_auc"] == 0.5
    assert (figures["foreign_cached_tokens"], figures["victim_kept"]) == (0, 1)
    assert misses_of(figures) == []


@pytest.mark.parametrize(
    ("salted", "miss"),
    [
        (guesses("tenant", 0.02), "timing_auc is not"),
        (guesses("tenant", -0.02), "timing_auc is not"),
        (guesses("tenant", 0.0, predicted_ms=250), "predicted_auc is not"),
        (guesses("tenant", 0.0, cached_tokens=16), "usage"),
        (guesses("tenant", 0.0, num_kept=NUM - 1), "not there any more"),
    ],
)
def test_whatever_tells_is_a_miss(salted: Guesses, miss: str) -> None:
    [found] = misses_of(figures_of(salted, SHARED))
    assert miss in found


def test_a_measurement_that_would_see_nothing_is_a_miss() -> None:
    [found] = misses_of(figures_of(guesses("tenant", 0.0), guesses("shared", 0.01)))
    assert "would not have been seen" in found
