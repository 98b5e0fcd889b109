"""Which models are to be on a device: examples of what is worth an exchange."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from memory_manager.config import PlannerConfig
from memory_manager.policy.chooser import Choice, Standing, choose

FRESH_SLACK_S = 0.2


def standing(name: str, slacks_s: tuple[float, ...] = (), **fields: Any) -> Standing:
    present = fields.setdefault("is_present", False)
    return Standing(
        name=name,
        slacks_s=np.sort(np.array(slacks_s, float)),
        **{
            "num_bytes": 10,
            "may_leave": present,
            "may_come": not present,
            "back_s": 0.02,
            "rate_per_s": 0.0,
            **fields,
        },
    )


def there(name: str, slacks_s: tuple[float, ...] = (), **fields: Any) -> Standing:
    return standing(name, slacks_s, is_present=True, **fields)


def chosen(*standings: Standing, room_bytes: int = 0, **settings: Any) -> Choice:
    return choose(standings, room_bytes, FRESH_SLACK_S, PlannerConfig(**settings))


def moves(choice: Choice) -> list[tuple[str, tuple[str, ...]]]:
    return [(each.come, each.leave) for each in choice.exchanges]


def test_whoever_is_waited_for_comes_into_room() -> None:
    assert moves(chosen(standing("a", (0.1,)), room_bytes=10)) == [("a", ())]
    assert moves(chosen(standing("a", (-5.0,)), there("b", (9.0,)), room_bytes=10)) == [("a", ())]


def test_whoever_nobody_waits_for_does_not_come() -> None:
    assert chosen(standing("a", rate_per_s=9.0), room_bytes=10) == Choice(())


def test_an_idle_model_leaves_at_once() -> None:
    assert moves(chosen(standing("a", (0.1,)), there("b"))) == [("a", ("b",))]


def test_the_model_that_is_asked_for_least_leaves_however_short_its_wake() -> None:
    often = there("often", rate_per_s=10.0, back_s=0.0199)
    seldom = there("seldom", rate_per_s=0.2, back_s=0.02)
    assert moves(chosen(standing("a", (0.1,)), often, seldom)) == [("a", ("seldom",))]


def test_an_idle_model_of_weight_stays() -> None:
    light = standing("light", (0.1,), weight=2.0**-10)
    assert not moves(chosen(light, there("heavy", rate_per_s=0.5, weight=2.0**10)))


def test_requests_that_can_stand_a_pause_let_others_in_at_the_last_moment() -> None:
    patient = there("patient", (30.0, 40.0))
    choice = chosen(standing("a", (0.1,)), patient)
    assert not moves(choice)
    assert choice.due_in_s == pytest.approx(0.1 - 0.02 - PlannerConfig().swap_guard_s)
    assert moves(chosen(standing("a", (0.03,)), patient)) == [("a", ("patient",))]


def test_nobody_is_made_to_miss_for_as_many_who_would() -> None:
    assert not moves(chosen(standing("a", (0.03,)), there("b", (0.5,))))
    assert moves(chosen(standing("a", (0.03, 0.03, 0.03)), there("b", (0.5,)))) == [("a", ("b",))]


def test_late_requests_displace_nobody_who_runs() -> None:
    assert not moves(chosen(standing("a", (-1.0,) * 900), there("b", (30.0,))))
    assert moves(chosen(standing("a", (-1.0,)), there("b"))) == [("a", ("b",))]


def test_what_comes_too_late_for_all_who_wait_gains_by_what_is_to_come_alone() -> None:
    slow = {"back_s": 0.5}  # longer than a request can wait
    held = there("held", rate_per_s=1.0, **slow)
    assert not moves(chosen(standing("a", (0.1,), rate_per_s=1.2, **slow), held))
    assert moves(chosen(standing("a", (0.1,), rate_per_s=3.0, **slow), held)) == [("a", ("held",))]


def test_as_many_leave_as_are_needed_and_no_more() -> None:
    small = there("small", num_bytes=4)
    others = [there(name, num_bytes=10, rate_per_s=0.01) for name in "bc"]
    assert moves(chosen(standing("a", (0.1,) * 9, num_bytes=20), small, *others)) == [("a", ("b", "c"))]
    assert moves(chosen(standing("a", (0.1,) * 9, num_bytes=30), small, *others)) == []


def test_two_who_are_waited_for_do_not_count_on_the_same_room() -> None:
    choice = chosen(standing("a", (0.1, 0.1)), standing("b", (0.1,)), there("c"), there("d"))
    assert sorted(moves(choice)) == [("a", ("c",)), ("b", ("d",))]
    assert moves(chosen(standing("a", (0.1, 0.1)), standing("b", (0.1,)), room_bytes=10)) == [("a", ())]


def test_nothing_is_due_when_nothing_is_put_off() -> None:
    assert chosen(there("b", (1.0,))).due_in_s == math.inf
