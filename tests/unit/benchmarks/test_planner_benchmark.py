"""The benchmark of decisions runs, and gives the figures that it promises."""

from __future__ import annotations

from benchmarks.planner import measure


def test_it_times_decisions_at_every_size() -> None:
    figures = measure(sizes=(6, 20), repeats=3)
    assert figures.keys() == {"planner_ms_6", "planner_ms_20", "planner_ms_20_all_waiting"}
    assert all(0 < value < 1000 for value in figures.values())
