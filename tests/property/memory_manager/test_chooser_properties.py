"""The chooser keeps within its room, and moves nothing that must stay."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from memory_manager.config import PlannerConfig
from memory_manager.policy.chooser import Standing, choose

CONFIG = PlannerConfig()


@st.composite
def standings(draw: st.DrawFn) -> list[Standing]:
    found = []
    for number in range(draw(st.integers(1, 8))):
        present = draw(st.booleans())
        slacks_s = draw(st.lists(st.floats(-5, 20), max_size=6))
        found.append(
            Standing(
                name=str(number),
                num_bytes=draw(st.integers(1, 40)),
                is_present=present,
                may_leave=present and draw(st.booleans()),
                may_come=not present and draw(st.booleans()),
                back_s=draw(st.floats(0.001, 3)),
                slacks_s=np.sort(np.array(slacks_s, float)),
                rate_per_s=draw(st.floats(0, 20)),
                weight=draw(st.sampled_from([0.25, 1.0, 4.0])),
            )
        )
    return found


@given(standings(), st.integers(0, 60), st.floats(0.01, 2))
def test_what_comes_fits_once_what_leaves_has_left(
    found: list[Standing], room_bytes: int, fresh_slack_s: float
) -> None:
    by_name = {each.name: each for each in found}
    choice = choose(found, room_bytes, fresh_slack_s, CONFIG)
    leaving = [name for each in choice.exchanges for name in each.leave]
    coming = [each.come for each in choice.exchanges]
    assert len(set(leaving)) == len(leaving)
    assert len(set(coming)) == len(coming)
    assert all(by_name[name].may_leave for name in leaving)
    assert all(by_name[name].may_come and len(by_name[name].slacks_s) for name in coming)
    freed = sum(by_name[name].num_bytes for name in leaving)
    assert sum(by_name[name].num_bytes for name in coming) <= room_bytes + freed
    for each in choice.exchanges:
        needed = by_name[each.come].num_bytes
        assert each.net > 0 or not each.leave
        # None leaves needlessly: without any of them there would be too little room.
        assert not each.leave or sum(by_name[name].num_bytes for name in each.leave) - needed < min(
            by_name[name].num_bytes for name in each.leave
        ) + max(0, room_bytes)
    assert all(each.name in coming for each in found if each.may_come and len(each.slacks_s)) or (
        choice.put_off
        or leaving
        or sum(by_name[name].num_bytes for name in coming)
        + min(
            each.num_bytes
            for each in found
            if each.may_come and len(each.slacks_s) and each.name not in coming
        )
        > room_bytes
    ), "whatever fits beside the others comes"
    assert choice == choose(found, room_bytes, fresh_slack_s, CONFIG)


@given(standings(), st.floats(0.01, 2))
def test_nobody_leaves_for_late_requests_while_anything_runs_in_time(
    found: list[Standing], fresh_slack_s: float
) -> None:
    late = [
        each
        if each.is_present
        else Standing(**{**fields_of(each), "slacks_s": np.minimum(each.slacks_s, -1.0), "rate_per_s": 0.0})
        for each in found
    ]
    busy = {each.name for each in found if each.is_present and (each.slacks_s >= 0).any()}
    choice = choose(late, 0, fresh_slack_s, CONFIG)
    assert not busy.intersection(name for each in choice.exchanges for name in each.leave)


def fields_of(standing: Standing) -> dict[str, object]:
    return {name: getattr(standing, name) for name in Standing.__slots__}
