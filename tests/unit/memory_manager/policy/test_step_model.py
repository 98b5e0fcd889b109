"""Costs of a model's steps, found by those that were measured."""

from __future__ import annotations

import pytest

from memory_manager.policy.step_model import StepModel


def test_before_any_step_something_is_guessed() -> None:
    guess = StepModel()
    assert 0.001 < guess.seconds(1, 0) < 0.1
    assert guess.seconds(0, 0) < guess.seconds(1, 0) < guess.seconds(8, 0) < guess.seconds(8, 2000)


def test_the_first_step_says_how_much_quicker_or_slower_all_is() -> None:
    guess, model = StepModel(), StepModel()
    model.note(8, 100, 10 * guess.seconds(8, 100))
    assert model.seconds(8, 100) == pytest.approx(10 * guess.seconds(8, 100))
    assert model.seconds(64, 0) == pytest.approx(10 * guess.seconds(64, 0), rel=0.1)


@pytest.mark.parametrize(("num_decodes", "num_prefill_tokens", "seconds"), [(0, 0, 1.0), (1, 0, 0.0)])
def test_a_step_that_computed_nothing_tells_nothing(
    num_decodes: int, num_prefill_tokens: int, seconds: float
) -> None:
    model = StepModel()
    model.note(num_decodes, num_prefill_tokens, seconds)
    assert model.seconds(3, 4) == StepModel().seconds(3, 4)


def test_one_long_pause_changes_little() -> None:
    model = StepModel()
    for number in range(200):
        model.note(1 + number % 20, 0, 0.01 + 0.0001 * (1 + number % 20))
    expected_s = model.seconds(10, 0)
    model.note(10, 0, 100.0)
    assert model.seconds(10, 0) == pytest.approx(expected_s, rel=0.05)


def test_what_steps_that_are_alike_do_not_tell_stays_as_it_was() -> None:
    model = StepModel()
    for number in range(600):
        model.note(number % 9, 50 * (number % 4), 0.01 + 0.001 * (number % 9) + 0.01 * (number % 4))
    for _ in range(5000):
        model.note(8, 0, 0.018)
    assert model.prefill_token_s == pytest.approx(0.0002, rel=0.1)
    assert model.decode_s == pytest.approx(0.001, rel=0.1)
    assert model.step_s == pytest.approx(0.01, rel=0.1)
