"""How fast a model answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_manager.policy.pace import Pace


def test_a_new_figure_counts_a_tenth() -> None:
    pace = Pace(first_token_s=0.1, output_tokens=100.0)
    pace.note_first_token(0.2, 1.0)
    pace.note_end(50)
    assert pace.first_token_s == pytest.approx(0.11)
    assert pace.output_tokens == pytest.approx(95.0)


def test_of_a_first_token_that_had_to_wait_half_of_the_target_counts() -> None:
    waited, limit = Pace(), Pace()
    waited.note_first_token(99.0, 1.0)
    limit.note_first_token(0.5, 1.0)
    assert waited == limit


def test_a_pause_counts_as_one_gap_between_tokens_however_long_it_is() -> None:
    long, longer = Pace(), Pace()
    for pace, pause_s in ((long, 1.0), (longer, 1000.0)):
        for _ in range(20):
            pace.note_tokens(8, 8 * 0.02)
        pace.note_tokens(8, 8 * 0.02 + pause_s)
    assert long == longer
    assert long.token_s == pytest.approx(0.02, rel=0.05)


@given(st.floats(1e-4, 1.0), st.floats(1e-4, 1.0))
def test_the_seconds_of_a_token_follow_those_that_most_take(first_s: float, then_s: float) -> None:
    pace = Pace()
    pace.note_tokens(8, 8 * first_s)
    assert pace.token_s == pytest.approx(first_s)
    for number in range(3000):
        pace.note_tokens(1, 9.0 if number % 4 == 0 else then_s)
    assert pace.token_s == pytest.approx(then_s, rel=0.1)


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
        assert min(least, 128) <= pace.output_tokens <= max(most, 128)
