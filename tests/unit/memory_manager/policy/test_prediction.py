"""Predictions of first tokens, and how they are put right."""

from __future__ import annotations

import random

import pytest

from memory_manager.policy.prediction import Ahead, PredictionError, first_token_s


def test_what_takes_longest_is_waited_for_and_then_the_prompt_is_computed() -> None:
    assert first_token_s(Ahead(0.0, 0, 9.0, 0.02, 0.1)) == pytest.approx(0.12)
    assert first_token_s(Ahead(0.5, 0, 9.0, 0.02, 0.1)) == pytest.approx(0.6)
    assert first_token_s(Ahead(0.5, 3, 0.3, 0.02, 0.1)) == pytest.approx(1.0)


def test_predictions_that_were_short_are_drawn_out() -> None:
    rng = random.Random(0)
    error = PredictionError()
    for _ in range(2000):
        error.note(1.0, 2.0 * rng.lognormvariate(0.0, 0.5), waits_for_room=True)
    assert error.likely_s(1.0, waits_for_room=True) == pytest.approx(2.0, rel=0.25)
    assert error.cautious_s(1.0, waits_for_room=True) == pytest.approx(2.0 * 1.52, rel=0.3)
    assert error.likely_s(1.0, waits_for_room=False) == 1.0


def test_what_waits_for_turns_alone_is_put_right_by_seconds() -> None:
    error = PredictionError()
    for number in range(100):
        error.note(0.1, 0.15 + 0.01 * (number % 5), waits_for_room=False)
    assert error.likely_s(0.5, waits_for_room=False) == pytest.approx(0.57)
    assert error.cautious_s(0.5, waits_for_room=False) == pytest.approx(0.585, abs=0.006)
    assert error.likely_s(0.5, waits_for_room=True) == 0.5
    for _ in range(40):
        error.note(0.3, 0.1, waits_for_room=False)  # what was before is forgotten
    assert error.likely_s(0.5, waits_for_room=False) == pytest.approx(0.3)
    assert error.likely_s(0.1, waits_for_room=False) == 0.0


def test_caution_fades_while_everybody_is_refused_by_it() -> None:
    error = PredictionError()
    for _ in range(20):
        error.note(1.0, 50.0, waits_for_room=True)
    refused = 0
    while error.cautious_s(1.0, waits_for_room=True) > 1.2:
        error.note_kept_out(waits_for_room=True)
        refused += 1
    assert 10 < refused < 2000


def test_caution_never_fades_to_less_than_what_is_predicted() -> None:
    error = PredictionError()
    for _ in range(1000):
        error.note_kept_out(waits_for_room=False)
    assert error.cautious_s(1.0, waits_for_room=False) == 1.0
