"""The chooser keeps within its room, and moves nothing that must stay."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from memory_manager.config import PlannerConfig
from memory_manager.policy.chooser import Among, Chooser, Lack, choose
from memory_manager.policy.stakes import Standing, guard_s

CONFIG = PlannerConfig(starve_after_s=60.0)


def lacking(missing_bytes: int, found: list[Standing]) -> Lack:
    num_bytes = {each.name: each.num_bytes for each in found}
    return lambda names: missing_bytes - sum(num_bytes[each] for each in names)


@st.composite
def standings(draw: st.DrawFn) -> list[Standing]:
    found = []
    for number in range(draw(st.integers(1, 8))):
        is_present = draw(st.booleans())
        slacks_s = draw(st.lists(st.floats(-5, 20), max_size=6))
        found.append(
            Standing(
                name=str(number),
                num_bytes=draw(st.integers(1, 40)),
                is_present=is_present,
                may_leave=is_present and draw(st.booleans()),
                may_come=not is_present and draw(st.booleans()),
                back_s=draw(st.floats(0.001, 3)),
                slacks_s=tuple(sorted(slacks_s)),
                rate_per_s=draw(st.just(0.0) | st.floats(0, 20)),
                num_expected=draw(st.sampled_from([0.0, 0.0, 0.1, 0.9])),
                fresh_slack_s=draw(st.floats(0.01, 2)),
                weight=draw(st.sampled_from([0.25, 1.0, 4.0])),
                waited_s=draw(st.floats(0, 120)),
                is_unused=is_present and not slacks_s and draw(st.booleans()),
                is_guest=is_present and draw(st.booleans()),
            )
        )
    return found


def only_late(found: list[Standing]) -> list[Standing]:
    """Has all who are away be asked for by late requests alone."""

    def late(away: Standing) -> Standing:
        slacks_s = tuple(min(each, -0.5) for each in away.slacks_s)
        return away._replace(slacks_s=slacks_s, rate_per_s=0.0, num_expected=0.0)

    return [each if each.is_present else late(each) for each in found]


def is_busy(standing: Standing) -> bool:
    return any(slack_s >= 0 for slack_s in standing.slacks_s)


@given(standings(), st.integers(-20, 60))
def test_what_comes_fits_once_what_leaves_has_left_and_nobody_leaves_needlessly(
    found: list[Standing], room_bytes: int
) -> None:
    by_name = {each.name: each for each in found}
    choice = choose(found, room_bytes, CONFIG)
    leaving = [name for each in choice.exchanges for name in each.leave]
    coming = [each.come for each in choice.exchanges]
    assert len(set(leaving)) == len(leaving)
    assert len(set(coming)) == len(coming)
    assert all(by_name[name].may_leave for name in leaving)
    assert all(by_name[name].is_wanted for name in coming)
    for exchange in choice.exchanges:
        shortage_bytes = by_name[exchange.come].num_bytes - room_bytes
        freed_bytes = [by_name[name].num_bytes for name in exchange.leave]
        assert sum(freed_bytes) >= shortage_bytes
        assert all(sum(freed_bytes) - each < shortage_bytes for each in freed_bytes)
        room_bytes = sum(freed_bytes) - shortage_bytes
        assert exchange.net > 0 or not exchange.leave or exchange.as_guest
    asked_for = [each for each in found if each.is_wanted and (len(each.slacks_s) or each.num_expected)]
    if not leaving:
        assert all(each.num_bytes > room_bytes for each in asked_for if each.name not in coming), (
            "whoever is asked for and fits beside the others comes"
        )


@given(standings(), st.integers(0, 60))
def test_it_is_weighed_again_exactly_while_somebody_who_wants_to_come_does_not(
    found: list[Standing], room_bytes: int
) -> None:
    choice = choose(found, room_bytes, CONFIG)
    if len(choice.exchanges) < sum(each.is_wanted for each in found):
        assert 0 < choice.due_in_s <= CONFIG.reweigh_s
    else:
        assert choice.due_in_s == math.inf
    assert all(each.due_in_s == 0 for each in choice.exchanges)


@given(standings(), st.integers(0, 60))
def test_the_outcome_is_the_same_when_asked_again(found: list[Standing], room_bytes: int) -> None:
    assert choose(found, room_bytes, CONFIG) == choose(found, room_bytes, CONFIG)
    chooser = Chooser(found, CONFIG)
    for each in found:
        assert chooser.exchange(each, lacking(10, found)) == chooser.exchange(each, lacking(10, found))


@given(standings())
def test_late_requests_displace_unused_models_until_they_have_waited_for_long(found: list[Standing]) -> None:
    by_name = {each.name: each for each in found}
    for exchange in choose(only_late(found), 0, CONFIG).exchanges:
        leaving, comes = [by_name[name] for name in exchange.leave], by_name[exchange.come]
        assert exchange.as_guest == bool(exchange.leave), "room that others have made is free to whoever fits"
        if comes.waited_s < CONFIG.starve_after_s:
            assert all(each.is_unused for each in leaving)
        assert not any(is_busy(each) and each.weight > comes.weight for each in leaving)


@given(standings())
def test_a_pause_is_not_put_upon_anybody_before_it_must_be(found: list[Standing]) -> None:
    """Whoever runs is displaced for a request in time only if that could not wait for the next look."""
    by_name = {each.name: each for each in found}
    for exchange in choose(found, 0, CONFIG).exchanges:
        comes = by_name[exchange.come]
        least_s = max(0.0, comes.back_s - guard_s(comes.back_s))
        in_time_s = [slack_s for slack_s in comes.slacks_s if slack_s >= least_s]
        if in_time_s and not exchange.as_guest and any(is_busy(by_name[name]) for name in exchange.leave):
            assert min(in_time_s) <= comes.back_s + guard_s(comes.back_s) + 1e-9


@given(standings(), st.data())
def test_who_was_taken_away_counts_as_one_who_may_not_leave(
    found: list[Standing], data: st.DataObject
) -> None:
    gone = data.draw(st.sets(st.sampled_from([each.name for each in found])))
    chooser = Chooser(found, CONFIG)
    chooser.in_order()  # what it has worked out before must not outlive a change
    for each in found:
        if each.name in gone:
            assert chooser.take_away(each.name) == (each.num_bytes if each.may_leave else 0)
            assert chooser.take_away(each.name) == 0
    without = Chooser(
        [each._replace(may_leave=each.may_leave and each.name not in gone) for each in found], CONFIG
    )
    assert chooser.in_order() == without.in_order()
    assert not gone.intersection(chooser.in_order())
    for shortage_bytes in (1, 10, 40):
        lack = lacking(shortage_bytes, found)
        assert chooser.cheapest(lack, Among.ALL) == without.cheapest(lack, Among.ALL)
        for each in found:
            if each.may_come:
                assert chooser.exchange(each, lack) == without.exchange(each, lack)
