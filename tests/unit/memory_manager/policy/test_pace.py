"""How fast a model answers, as running means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_manager.policy.pace import Pace


def test_a_new_figure_counts_a_tenth() -> None:
    pace = Pace(first_token_s=0.1, token_s=0.02, output_tokens=100.0)
    pace.note_first_token(0.2, 1.0)
    pace.note_end(50, 49, 49 * 0.04)
    assert pace.first_token_s == pytest.approx(0.11)
    assert pace.token_s == pytest.approx(0.022)
    assert pace.output_tokens == pytest.approx(95.0)


def test_of_a_first_token_that_had_to_wait_half_of_the_target_counts() -> None:
    waited, limit = Pace(), Pace()
    waited.note_first_token(99.0, 1.0)
    limit.note_first_token(0.5, 1.0)
    assert waited == limit


def test_an_output_of_one_token_says_nothing_of_further_ones() -> None:
    pace = Pace(token_s=0.02)
    before = pace.output_tokens
    pace.note_end(1, 0, 9.0)
    assert pace.token_s == 0.02
    assert pace.output_tokens < before


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(1, 5000), st.floats(0, 500)), max_size=200))
def test_a_first_token_is_never_thought_to_take_longer_than_half_of_the_target(
    noted: list[tuple[float, int, float]],
) -> None:
    pace = Pace()
    for first_s, num_tokens, seconds in noted:
        pace.note_first_token(first_s, 1.0)
        pace.note_end(num_tokens, num_tokens - 1, seconds)
        assert 0 <= pace.first_token_s <= 0.5
    if noted:
        most, least = max(each[1] for each in noted), min(each[1] for each in noted)
        assert min(least, 128) <= pace.output_tokens <= max(most, 128)
