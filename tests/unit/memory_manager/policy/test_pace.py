"""How fast a model answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_manager.policy.kv_forecast import UNMEASURED_OUTPUT_TOKENS
from memory_manager.policy.pace import Pace


def test_a_new_first_token_counts_a_tenth_and_a_new_output_as_much_as_each_before() -> None:
    pace = Pace(first_token_s=0.1, output_tokens=100.0)
    pace.note_first_token(0.2, 1.0)
    pace.note_end(50)
    pace.note_end(60)
    assert pace.first_token_s == pytest.approx(0.11)
    assert pace.output_tokens == pytest.approx((100 + 50 + 60) / 3)
    assert pace.num_ended == 2


def test_of_a_first_token_that_had_to_wait_half_of_the_target_counts() -> None:
    waited, limit = Pace(), Pace()
    waited.note_first_token(99.0, 1.0)
    limit.note_first_token(0.5, 1.0)
    assert waited == limit


def note_all(pace: Pace, seconds: list[float], num_requests: int = 1) -> None:
    """Notes stretches of eight tokens, one after the other, that many requests have beside each other."""
    now_s = 0.0
    for each_s in seconds:
        for _ in range(num_requests):
            pace.note_tokens(8, now_s, now_s + 8 * each_s)
        now_s += 8 * each_s


def test_a_pause_counts_as_one_stretch_however_long_it_is_and_however_many_requests_have_it() -> None:
    expected = Pace()
    note_all(expected, [0.02] * 80 + [1.0])
    for pause_s, num_requests in ((1000.0, 1), (1.0, 64)):
        pace = Pace()
        note_all(pace, [0.02] * 80 + [pause_s], num_requests)
        assert pace.token_s == pytest.approx(expected.token_s)
    assert expected.token_s == pytest.approx(0.02, rel=0.06)


def test_a_first_stretch_that_was_slow_is_soon_forgotten() -> None:
    pace = Pace()
    note_all(pace, [4.0] + [0.02] * 40)
    assert pace.token_s < 0.1


@given(st.floats(1e-4, 1.0), st.floats(1e-4, 1.0))
def test_the_seconds_of_a_token_follow_those_that_most_take(first_s: float, then_s: float) -> None:
    pace = Pace()
    note_all(pace, [first_s] + [9.0 if number % 4 == 0 else then_s for number in range(1000)])
    assert pace.token_s == pytest.approx(then_s, rel=0.2)


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(1, 5000)), max_size=200))
def test_a_first_token_is_never_thought_to_take_longer_than_half_of_the_target(
    noted: list[tuple[float, int]],
) -> None:
    pace = Pace()
    for first_s, num_tokens in noted:
        pace.note_first_token(first_s, 1.0)
        pace.note_end(num_tokens)
        assert 0 <= pace.first_token_s <= 0.5
    if noted:
        most, least = max(each[1] for each in noted), min(each[1] for each in noted)
        assert min(least, UNMEASURED_OUTPUT_TOKENS) <= pace.output_tokens + 1e-6
        assert pace.output_tokens - 1e-6 <= max(most, UNMEASURED_OUTPUT_TOKENS)
