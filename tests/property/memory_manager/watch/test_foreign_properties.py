"""The rule for memory that other processes want, over any readings."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from memory_manager.kv_spec import PAGE_BYTES as PAGE
from memory_manager.watch.others_rule import OthersConfig, OthersRule

BUDGET, FLOOR = 100 * PAGE, 3 * PAGE
CONFIG = OthersConfig(margin_bytes=8 * PAGE, step_bytes=4 * PAGE, grow_after_s=5.0)
rooms = st.one_of(st.none(), st.integers(0, 150 * PAGE))
readings = st.lists(
    st.tuples(rooms, st.sampled_from([None, 0.0, 0.5]), st.floats(0.1, 8.0)), min_size=1, max_size=60
)


@given(readings)
def test_the_budget_stays_in_its_bounds_and_leaves_others_what_they_took(
    trace: list[tuple[int | None, float | None, float]],
) -> None:
    rule, now_s = OthersRule(BUDGET, FLOOR, CONFIG), 0.0
    for room, stalled, pause_s in trace:
        now_s += pause_s
        effective = rule.observe(room, stalled, now_s)
        assert FLOOR <= effective <= BUDGET
        assert effective % PAGE == 0
        if room is not None:
            # At once, and all of it but what the margin covers.
            assert effective <= max(FLOOR, room - CONFIG.margin_bytes + CONFIG.step_bytes)


@given(readings)
def test_it_grows_only_after_a_quiet_time_and_into_what_was_free_all_along(
    trace: list[tuple[int | None, float | None, float]],
) -> None:
    rule, now_s = OthersRule(BUDGET, FLOOR, CONFIG), 0.0
    seen: list[tuple[float, int | None, float | None]] = []
    for room, stalled, pause_s in trace:
        now_s += pause_s
        before = rule.effective_bytes
        after = rule.observe(room, stalled, now_s)
        seen.append((now_s, room, stalled))
        if after > before:
            window = [each for each in seen if each[0] > now_s - CONFIG.grow_after_s]
            for _, then_room, then_stalled in window:
                assert then_stalled != 0.5
                assert then_room is None or after <= max(FLOOR, then_room - CONFIG.margin_bytes)


@given(readings, st.integers(0, 150 * PAGE))
def test_readings_that_stay_settle_it_within_a_step_of_the_room(
    trace: list[tuple[int | None, float | None, float]], room: int
) -> None:
    rule, now_s = OthersRule(BUDGET, FLOOR, CONFIG), 0.0
    for each, stalled, pause_s in trace:
        now_s += pause_s
        rule.observe(each, stalled, now_s)
    for _ in range(30):
        now_s += 1.0
        settled = rule.observe(room, None, now_s)
    target = max(FLOOR, min(BUDGET, (room - CONFIG.margin_bytes) // PAGE * PAGE))
    assert abs(settled - target) < CONFIG.step_bytes
    assert all(rule.observe(room, None, now_s + i) == settled for i in range(20))  # and no more to and fro
