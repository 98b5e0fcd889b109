"""Which models are to be on a device: examples of what is worth an exchange."""

from __future__ import annotations

import math
from typing import Any

import pytest

from memory_manager.config import PlannerConfig
from memory_manager.policy.chooser import Among, Choice, Chooser, Lack, choose
from memory_manager.policy.stakes import Standing, guard_s, horizon_s

FRESH_SLACK_S = 0.2


def standing(name: str, slacks_s: tuple[float, ...] = (), **fields: Any) -> Standing:
    present = fields.setdefault("is_present", False)
    return Standing(
        name=name,
        slacks_s=tuple(sorted(slacks_s)),
        **{
            "num_bytes": 10,
            "may_leave": present,
            "may_come": not present,
            "back_s": 0.02,
            "rate_per_s": 0.0,
            "fresh_slack_s": FRESH_SLACK_S,
            **fields,
        },
    )


def there(name: str, slacks_s: tuple[float, ...] = (), **fields: Any) -> Standing:
    return standing(name, slacks_s, is_present=True, **fields)


def chosen(*standings: Standing, room_bytes: int = 0, **settings: Any) -> Choice:
    return choose(standings, room_bytes, PlannerConfig(**settings))


def lacking(missing_bytes: int, **num_bytes: int) -> Lack:
    return lambda names: missing_bytes - sum(num_bytes[each] for each in names)


def moves(choice: Choice) -> list[tuple[str, tuple[str, ...]]]:
    return [(each.come, each.leave) for each in choice.exchanges]


def test_whoever_is_waited_for_comes_into_room() -> None:
    assert moves(chosen(standing("a", (0.1,)), room_bytes=10)) == [("a", ())]
    assert moves(chosen(standing("a", (-5.0,)), there("b", (9.0,)), room_bytes=10)) == [("a", ())]


def test_whoever_nobody_waits_for_does_not_come() -> None:
    assert chosen(standing("a", rate_per_s=9.0), room_bytes=10) == Choice(())
    assert not moves(chosen(standing("a", rate_per_s=90.0), room_bytes=10))
    assert not moves(chosen(standing("a", rate_per_s=90.0), there("b")))


def test_whoever_a_rhythm_lets_expect_comes() -> None:
    assert moves(chosen(standing("a", num_expected=0.5), room_bytes=10)) == [("a", ())]
    assert moves(chosen(standing("a", num_expected=0.5), there("b"))) == [("a", ("b",))]
    assert not moves(chosen(standing("a", num_expected=0.5), there("b", num_expected=0.9)))


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
    assert choice.due_in_s == pytest.approx(0.1 - 0.02 - guard_s(0.02))
    assert moves(chosen(standing("a", (0.03,)), patient)) == [("a", ("patient",))]


def test_what_no_clock_could_tell_from_now_is_not_put_off() -> None:
    patient, last_moment_s = there("patient", (30.0, 40.0)), 0.02 + guard_s(0.02)
    assert moves(chosen(standing("a", (math.nextafter(last_moment_s, 1.0),)), patient)) == [
        ("a", ("patient",))
    ]


def test_nobody_is_made_to_miss_for_as_many_who_would() -> None:
    assert not moves(chosen(standing("a", (0.03,)), there("b", (0.5,))))
    assert moves(chosen(standing("a", (0.03, 0.03, 0.03)), there("b", (0.5,)))) == [("a", ("b",))]


def test_a_pause_takes_a_share_of_the_slack_of_each_who_runs() -> None:
    few, many = there("b", (16.0,) * 4), there("b", (16.0,) * 12)
    coming = standing("a", (0.03,))
    assert moves(chosen(coming, few))
    assert not moves(chosen(coming, many))


def test_who_leaves_comes_back_after_all_who_wait() -> None:
    coming, running = standing("a", (0.03,)), there("b", (16.0,) * 4)
    assert moves(chosen(coming, running))
    others = [standing(name, (0.03,), num_bytes=1000) for name in "cde"]
    assert not moves(chosen(coming, running, *others))


def test_who_leaves_while_kv_is_short_loses_all_that_runs() -> None:
    coming, running = standing("a", (0.03, 0.03)), there("b", (800.0,) * 3)
    assert moves(chosen(coming, running))
    assert not moves(choose([coming, running], 0, PlannerConfig(), is_short_of_kv=True))
    assert moves(choose([coming, there("b", (800.0,))], 0, PlannerConfig(), is_short_of_kv=True))


def test_what_is_put_off_is_weighed_again_at_the_latest_after_a_while() -> None:
    assert chosen(standing("a", (9.0,)), there("b", (30.0,))).due_in_s == PlannerConfig().reweigh_s
    assert chosen(standing("a", (9.0,)), there("b", (0.5, 0.5))).due_in_s == PlannerConfig().reweigh_s
    assert chosen(standing("a", (9.0,)), there("b", (30.0,)), room_bytes=10).due_in_s == math.inf


def test_late_requests_displace_unused_models_alone() -> None:
    late = standing("a", (-1.0,) * 900, waited_s=9.0)
    assert not moves(chosen(late, there("b", (30.0,))))
    assert not moves(chosen(late, there("b")))
    [exchange] = chosen(late, there("b"), there("c", is_unused=True)).exchanges
    assert (exchange.leave, exchange.as_guest, exchange.gain) == (("c",), True, 0.0)


def test_late_requests_that_have_waited_for_long_displace_whoever_loses_least() -> None:
    starving = standing("a", (-1.0,), waited_s=PlannerConfig().starve_after_s)
    others = (there("b", (0.5, 0.5)), there("c", (0.5,)))
    [exchange] = chosen(starving, *others).exchanges
    assert (exchange.leave, exchange.as_guest, exchange.due_in_s) == (("c",), True, 0.0)
    assert not moves(chosen(standing("a", (-1.0,)), *others))


def test_a_set_is_held_until_that_has_cost_as_much_as_to_change_it() -> None:
    slow: dict[str, Any] = {"back_s": 0.9}  # longer than a request can wait
    held = there("held", rate_per_s=0.1, **slow)

    def waiting(waited_s: float, **fields: Any) -> Standing:
        return standing("a", (-5.0,), waited_s=waited_s, **{"rate_per_s": 0.2, **slow, **fields})

    assert not moves(chosen(waiting(9.0), held))
    assert moves(chosen(waiting(64.0), held)) == [("a", ("held",))]
    assert not moves(chosen(waiting(500.0, rate_per_s=0.1), held))
    in_use = there("held", (90.0,), rate_per_s=0.1, weight=2.0, **slow)
    assert not moves(chosen(waiting(500.0, rate_per_s=0.4), in_use))
    assert moves(chosen(waiting(500.0, rate_per_s=0.4, weight=2.0), in_use)) == [("a", ("held",))]
    wakes_in_time = waiting(500.0, back_s=0.1)
    assert wakes_in_time.horizon.lasts_s == wakes_in_time.horizon.turn_s == horizon_s(0.1)


def test_a_long_wait_counts_up_to_eight_turns() -> None:
    slow = standing("a", waited_s=1e6, back_s=0.9)
    assert slow.horizon == (horizon_s(0.9), 8 * horizon_s(0.9))


def test_late_requests_never_displace_what_is_in_use_and_counts_more() -> None:
    starving = standing("a", (-1.0,), waited_s=PlannerConfig().starve_after_s)
    assert not moves(chosen(starving, there("b", (0.5,), weight=2.0)))
    assert moves(chosen(starving, there("b", weight=2.0, rate_per_s=9.0))) == [("a", ("b",))]
    assert moves(chosen(starving, there("b", (-0.5,), weight=2.0))) == [("a", ("b",))]


def test_who_starves_takes_the_room_of_its_equals_if_the_cheapest_counts_more() -> None:
    starving = standing("a", (-1.0,), waited_s=PlannerConfig().starve_after_s)
    others = (there("heavy", (0.5,), weight=2.0), there("equal", (0.5,) * 9))
    assert moves(chosen(starving, *others)) == [("a", ("equal",))]


def test_a_request_that_just_can_or_just_cannot_be_saved_counts_as_one_that_can() -> None:
    error_s = guard_s(0.1)
    for slack_s in (0.1 + error_s, 0.1, 0.1 - 0.9 * error_s):
        [exchange] = chosen(standing("a", (slack_s,), back_s=0.1), there("b", (30.0,))).exchanges
        assert exchange.leave == ("b",)
    assert not moves(chosen(standing("a", (0.1 - 1.1 * error_s,), back_s=0.1), there("b", (30.0,))))


def test_of_late_requests_those_come_first_that_have_waited_longest() -> None:
    waiting = [standing(name, (-1.0,), waited_s=waited_s) for name, waited_s in (("a", 5.0), ("b", 9.0))]
    assert moves(chosen(*waiting, room_bytes=10)) == [("b", ())]


def test_a_request_in_time_is_no_guest() -> None:
    assert not chosen(standing("a", (0.1, -1.0)), there("b", is_unused=True)).exchanges[0].as_guest


def test_a_guest_is_held_by_requests_that_run_on_it_in_time_and_by_nothing_else() -> None:
    asking = standing("a", (0.1,))
    assert not moves(chosen(asking, there("popular", rate_per_s=20.0)))
    guest: dict[str, Any] = {"rate_per_s": 20.0, "is_guest": True}
    assert moves(chosen(asking, there("guest", **guest))) == [("a", ("guest",))]
    assert moves(chosen(asking, there("guest", (-1.0,) * 9, **guest))) == [("a", ("guest",))]
    assert not moves(chosen(asking, there("guest", (0.5,), **guest)))


def test_who_has_not_settled_stays_but_for_who_has_to_have_the_room() -> None:
    new = there("new", is_settled=False)
    assert not moves(chosen(standing("a", (0.1,), waited_s=PlannerConfig().starve_after_s), new))
    assert Chooser([new], PlannerConfig()).cheapest(lacking(10, new=10), Among.ALL) == ("new",)
    assert not moves(chosen(standing("a", (0.1,)), there("kept", may_leave=False)))


def test_what_is_merely_expected_takes_no_room_that_is_in_use() -> None:
    expected = standing("a", num_expected=0.9, back_s=0.1)
    assert moves(chosen(expected, there("b"))) == [("a", ("b",))]
    assert not moves(chosen(expected, there("b", (-5.0,))))


def test_of_two_that_lose_as_much_the_idle_one_leaves() -> None:
    busy = there("busy", (90.0,))
    assert moves(chosen(standing("a", (0.03,)), busy, there("idle", rate_per_s=0.01))) == [("a", ("idle",))]


def test_a_guest_that_can_stand_a_pause_stays_until_the_last_moment() -> None:
    choice = chosen(standing("a", (0.1,)), there("guest", (30.0,), is_guest=True))
    assert not moves(choice)
    assert choice.due_in_s == pytest.approx(0.1 - 0.02 - guard_s(0.02))


def test_who_is_asked_for_often_comes_back_in_a_guests_place_unasked() -> None:
    guest, other = there("guest", is_guest=True), there("other")
    often, seldom = standing("a", rate_per_s=11.0), standing("a", rate_per_s=9.9)
    assert often.num_lost_soon == pytest.approx(1.1)
    assert moves(chosen(often, guest, other)) == [("a", ("guest",))]
    assert not moves(chosen(seldom, guest))
    assert not moves(chosen(often, there("guest", (0.5,), is_guest=True)))
    large = standing("a", rate_per_s=99.0, num_bytes=20)
    assert not moves(chosen(large, guest, other)), "one who is no guest would have to leave as well"


def test_what_saves_nobody_who_waits_has_to_gain_a_whole_request() -> None:
    slow: dict[str, Any] = {"back_s": 0.5}  # longer than a request can wait
    held = there("held", **slow)

    def asked(rate_per_s: float, **fields: Any) -> Standing:
        return standing("a", (0.1,), rate_per_s=rate_per_s, **slow, **fields)

    assert not moves(chosen(asked(0.1), held))
    [exchange] = chosen(asked(0.4), held).exchanges
    assert exchange.gain == pytest.approx(0.4 * (horizon_s(0.5) - 0.5))
    assert exchange.margin > 1
    [exchange] = chosen(asked(0.1, num_expected=0.5), held).exchanges
    assert exchange.margin < 1


def test_nobody_counts_as_known_for_never_being_asked_for() -> None:
    light = standing("light", (0.6,), back_s=0.5, weight=2.0**-5)
    held = there("held", back_s=0.5)
    assert not moves(chosen(light, held))
    assert moves(chosen(light, held, num_errors=0.0)) == [("light", ("held",))]


def test_each_model_adds_one_request_to_the_error() -> None:
    def margin(*residents: Standing) -> float:
        [exchange] = chosen(standing("a", (0.03,), num_bytes=20), *residents).exchanges
        return exchange.margin

    two = margin(there("b"), there("c"))
    assert two == pytest.approx(math.sqrt(3 / 2) * margin(there("b", num_bytes=20)))
    config = PlannerConfig()
    unit = math.log(2) / config.rate_half_life_s
    assert two == pytest.approx(config.num_errors * 0.1 * unit * math.sqrt(3 / 2) * horizon_s(0.02))


def test_what_comes_too_late_for_all_who_wait_gains_by_what_is_to_come_alone() -> None:
    slow: dict[str, Any] = {"back_s": 0.5}  # longer than a request can wait
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


def test_what_was_taken_away_is_gone() -> None:
    chooser = Chooser([there("b", num_bytes=7), there("c", rate_per_s=1.0)], PlannerConfig())
    asking = standing("a", (0.1,))
    assert chooser.in_order() == ["b", "c"]
    assert chooser.take_away("b") == 7
    assert chooser.take_away("b") == chooser.take_away("unknown") == 0
    assert chooser.in_order() == ["c"]
    assert chooser.cheapest(lacking(5, c=10), Among.ALL) == ("c",)
    assert chooser.cheapest(lacking(11, c=10), Among.ALL) is None
    exchange = chooser.exchange(asking, lacking(7, c=10))
    assert exchange is not None
    assert exchange.leave == ("c",)
    assert chooser.take(exchange) == 10
    assert chooser.exchange(asking, lacking(1)) is None
