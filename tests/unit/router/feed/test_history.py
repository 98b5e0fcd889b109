"""History: an hour of rows, as columns of equal length."""

from __future__ import annotations

from router.feed.history import INTERVAL_S, History


def test_rows_come_back_as_columns_with_none_where_nothing_was_measured() -> None:
    history = History()
    assert history.since(0.0) == {"interval_s": INTERVAL_S, "at": [], "series": {}}
    history.note(100.0, {"tokens_per_s": 1.0, "ttft_p50_s": None})
    history.note(105.0, {"tokens_per_s": 2.0, "ttft_p50_s": 0.5})
    assert history.since(0.0)["at"] == [100.0, 105.0]
    assert history.since(0.0)["series"] == {"tokens_per_s": [1.0, 2.0], "ttft_p50_s": [None, 0.5]}
    assert history.since(101.0)["series"] == {"tokens_per_s": [2.0], "ttft_p50_s": [0.5]}


def test_what_is_older_than_an_hour_goes() -> None:
    history = History()
    for number in range(1000):
        history.note(number * INTERVAL_S, {"running": float(number)})
    shown = history.since(0.0)
    assert len(shown["at"]) == 3600 / INTERVAL_S
    assert shown["series"]["running"][-1] == 999.0
    assert shown["at"][-1] - shown["at"][0] < 3600
