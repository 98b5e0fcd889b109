"""For how much of a wait a model was away."""

from __future__ import annotations

import pytest

from router.telemetry.waits import Wait, Waited


@pytest.mark.parametrize(
    ("away_before_s", "away_after_s", "waited"),
    [
        (3.0, 3.0, Waited(2.0, 0.0)),
        (3.0, 3.5, Waited(1.5, 0.5)),
        (3.0, 5.0, Waited(0.0, 2.0)),
        (3.0, 1.0, Waited(2.0, 0.0)),  # another model of that name
        (0.0, 7.0, Waited(0.0, 2.0)),  # it was made meanwhile, and was away before
    ],
)
def test_the_wait_is_split_by_the_models_absence(
    away_before_s: float, away_after_s: float, waited: Waited
) -> None:
    now_s, away_s = 10.0, away_before_s
    wait = Wait("m", lambda model: away_s if model == "m" else 99.0, lambda: now_s)
    now_s, away_s = 12.0, away_after_s
    assert wait.so_far() == waited
