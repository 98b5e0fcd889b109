"""Rates of the links, and what a model that never moved is expected to take."""

from __future__ import annotations

import pytest

from memory_manager.fleet.link_rates import LinkRates


def test_nothing_is_expected_before_the_first_move() -> None:
    rates = LinkRates()
    assert rates.expected_s("wake", 10**9) is None
    assert rates.bytes_per_s("cpu") == {}


def test_an_unmeasured_model_is_predicted_from_its_size_by_way_and_slowest_device() -> None:
    rates = LinkRates()
    rates.note("cuda:0", "wake", 10**9, 0.1)
    rates.note("cuda:1", "wake", 10**9, 0.2)
    rates.note("cuda:0", "load", 10**9, 2.0)
    assert rates.expected_s("wake", 3 * 10**9) == pytest.approx(0.6)
    assert rates.expected_s("load", 10**9) == pytest.approx(2.0)
    assert rates.bytes_per_s("cuda:0") == pytest.approx({"wake": 1e10, "load": 5e8})


def test_large_moves_say_more_than_small_ones_and_old_ones_fade() -> None:
    rates = LinkRates()
    rates.note("cpu", "wake", 10**9, 0.1)
    rates.note("cpu", "wake", 10**6, 0.01)  # a small one, all of it fixed cost
    assert rates.expected_s("wake", 10**9) == pytest.approx(0.1, rel=0.2)
    for _ in range(20):
        rates.note("cpu", "wake", 10**9, 0.5)
    assert rates.expected_s("wake", 10**9) == pytest.approx(0.5, rel=0.01)
