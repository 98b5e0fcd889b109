"""Figures of the last seconds: rates over ten, first tokens over a minute, how busy devices were over five."""

from __future__ import annotations

import pytest

from router.telemetry.recent import Rates, Recent, Totals


def test_rates_are_those_of_the_last_ten_seconds() -> None:
    rates = Rates()
    assert rates.per_s(0.0, Totals(5)) == (0.0, 0.0, 0.0)
    for second in range(30):
        rates.note(float(second), Totals(num_tokens=second**2, num_ended=2 * second), {})
    tokens, ended, refused = rates.per_s(29.5, Totals(29**2 + 100, 58))
    assert tokens == pytest.approx((29**2 + 100 - 19**2) / 10.5)
    assert ended == pytest.approx((58 - 38) / 10.5)
    assert refused == 0


def test_rates_of_a_server_that_has_just_started_are_over_its_life() -> None:
    rates = Rates()
    rates.note(100.0, Totals(), {})
    assert rates.per_s(100.0, Totals(10)) == (0.0, 0.0, 0.0)
    assert rates.per_s(102.0, Totals(10))[0] == 5.0


def test_a_device_is_as_busy_as_its_steps_took() -> None:
    rates = Rates()
    assert rates.busy_shares() == {}
    for second in range(20):
        busy_s = {"cpu:0": second * 0.25, "cpu:1": float(max(0, second - 17))}
        rates.note(float(second), Totals(), busy_s)
    assert rates.busy_shares() == {"cpu:0": 0.25, "cpu:1": 0.4}
    rates.note(20.0, Totals(), {"cpu:0": 100.0, "cpu:1": 0.0, "cpu:2": 3.0})
    shares = rates.busy_shares()
    assert shares["cpu:0"] == 1.0, "two workers at a time"
    assert shares["cpu:1"] == 0.0, "never below nothing"
    assert "cpu:2" not in shares, "nothing is known of before"


def test_first_tokens_are_those_of_the_last_minute() -> None:
    recent = Recent()
    assert recent.ttft_s(0.0, 0.5, 0.95) == [None, None]
    recent.note_first(99.0, 0.0)
    for number in range(100):
        recent.note_first(number / 100, 50.0)
    assert recent.ttft_s(70.0, 0.5, 0.95, 1.0) == [0.5, 0.95, 0.99]
    assert recent.ttft_s(111.0, 0.5) == [None]


def test_of_many_first_tokens_the_last_thousand_count() -> None:
    recent = Recent()
    for number in range(3000):
        recent.note_first(float(number), 0.0)
    assert recent.ttft_s(1.0, 0.0, 1.0) == [3000.0 - 1024, 2999.0]
