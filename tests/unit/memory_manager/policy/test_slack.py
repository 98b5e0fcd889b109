"""The latest moment at which a request has to be computed, worked out by hand."""

from __future__ import annotations

import math

import pytest

from memory_manager.policy.slack import running_latest_s, waiting_latest_s


def running(num_tokens: int, **changed: float) -> float:
    """Of a request whose first token came at 10 s, expected to have 101 tokens at 0.1 s each, which take 0.02 s."""
    values = {
        "first_at_s": 10.0,
        "deadline_s": 10.5,
        "expected_tokens": 101.0,
        "token_s": 0.02,
        "tpot_target_s": 0.1,
    }
    return running_latest_s(num_tokens=num_tokens, **{**values, **changed})


def test_a_request_without_a_token_has_to_be_begun_so_that_it_comes_by_its_deadline() -> None:
    assert waiting_latest_s(10.5, 0.2) == pytest.approx(10.3)
    assert waiting_latest_s(math.inf, 0.2) == math.inf


def test_a_running_request_has_what_its_targets_leave_beside_the_tokens_to_come() -> None:
    assert running(1) == pytest.approx(10 + 100 * 0.1 - 100 * 0.02)
    assert running(51) == pytest.approx(10 + 100 * 0.1 - 50 * 0.02)


def test_one_longer_than_expected_has_one_token_left() -> None:
    assert running(101) == running(101, expected_tokens=5.0) == pytest.approx(10 + 101 * 0.1 - 0.02)


def test_a_model_that_is_slower_than_its_target_has_no_slack() -> None:
    assert running(1, token_s=0.2) < 10


def test_whose_first_token_came_late_has_nothing_to_lose() -> None:
    assert running(1, first_at_s=10.6) == -math.inf
    assert running(1, first_at_s=10.5) > 10.5
