"""Sliding windows of met and missed requests, against a list of all of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mooring.slo import BEST_EFFORT, SLOClass
from router.telemetry.attainment import Attainments, Judged, Miss, SlidingCount
from router.telemetry.waits import Spent

SPAN_S = 60.0  # buckets of a second
EVENTS = st.lists(st.tuples(st.integers(0, 500), st.booleans()), max_size=80)


@given(start_s=st.integers(0, 10_000), events=EVENTS, last_pause_s=st.integers(0, 200))
def test_a_window_holds_what_is_no_older_than_it_and_nothing_else(
    start_s: int, events: list[tuple[int, bool]], last_pause_s: int
) -> None:
    window, noted, now_s = SlidingCount(SPAN_S), [], start_s + 0.25
    for pause, is_met in events:
        now_s += pause / 4
        window.note(is_met, now_s)
        noted.append((now_s, is_met))
        found, again = window.count(now_s), window.count(now_s)
        assert found == again == counted(noted, now_s)
    assert window.count(now_s + last_pause_s) == counted(noted, now_s + last_pause_s)


def counted(noted: list[tuple[float, bool]], now_s: float) -> Judged:
    """By the second in which each was noted: the present one and the 59 before it."""
    inside = [is_met for at_s, is_met in noted if int(now_s) - int(at_s) < 60]
    young = [is_met for at_s, is_met in noted if now_s - at_s <= SPAN_S - 1]
    recent = [is_met for at_s, is_met in noted if now_s - at_s < SPAN_S]
    assert len(young) <= len(inside) <= len(recent), "it is off by a bucket at most"
    return Judged(sum(inside), len(inside) - sum(inside))


NOTES = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from([None, "gold", "batch"]), st.booleans()), max_size=60
)


@given(notes=NOTES, most=st.integers(1, 6))
def test_each_tenant_class_and_model_has_its_own_count_and_the_longest_idle_goes(
    notes: list[tuple[str, str | None, bool]], most: int
) -> None:
    attainments = Attainments(most)
    kept: dict[tuple[str, str], list[bool]] = {}  # the longest idle first
    for number, (tenant, name, is_met) in enumerate(notes):
        slo_class = None if name is None else SLOClass(name, 1.0, 1.0, goal=0.9)
        miss = None if is_met else Miss(str(number), 0.0, None, None, Spent(0.0, 0.0))
        attainments.note(tenant, slo_class, "m", miss, float(number))
        key = (tenant, name or BEST_EFFORT)
        kept[key] = [*kept.pop(key, []), is_met]
        if len(kept) > most:
            del kept[next(iter(kept))]
    found = {(each.tenant, each.slo_class): each for each in attainments.entries()}
    assert list(found) == sorted(kept)
    for key, outcomes in kept.items():
        entry = found[key]
        assert entry.total == Judged(sum(outcomes), len(outcomes) - sum(outcomes))
        assert entry.windows["1h"].count(float(len(notes))) == entry.total
        assert entry.goal == (None if key[1] == BEST_EFFORT else 0.9)
        assert len(entry.misses) == min(20, entry.total.num_missed)
