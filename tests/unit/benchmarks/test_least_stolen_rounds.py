"""Which rounds of a benchmark count on a machine whose cores are also others'."""

from __future__ import annotations

import pytest

from benchmarks.neighbours import Neighbours, least_stolen


def rounds(*stolen_shares: float) -> list[Neighbours]:
    return [Neighbours(stolen_shares=[share]) for share in stolen_shares]


@pytest.mark.parametrize(
    ("stolen_shares", "kept"),
    [
        ((), None),
        ((0.0,), None),
        ((0.0, 0.005), {0, 1}),
        ((0.1, 0.0, 0.2), None),
        ((0.1, 0.0, 0.2, 0.0), {1, 3}),
        ((0.1, 0.0, 0.2, 0.3), {0, 1}),  # twice as many as wanted: no more are taken
    ],
)
def test_the_least_stolen_are_kept_once_there_are_enough(
    stolen_shares: tuple[float, ...], kept: set[int] | None
) -> None:
    assert least_stolen(rounds(*stolen_shares), 2) == kept


def test_what_is_left_out_is_told_too() -> None:
    kept = Neighbours(quiet_itl_s=[1.0], wake_itl_s=[2.0], load_itl_s=[2.0])
    kept.left_out = Neighbours(quiet_itl_s=[1.0], wake_itl_s=[8.0], load_itl_s=[8.0])
    assert kept.p99_ratio == 2
    assert kept.p99_ratio_of_all == pytest.approx(8)
