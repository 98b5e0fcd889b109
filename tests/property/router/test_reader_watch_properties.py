"""A reader that moves is never given up, and one that stands still is, at the first look after its time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.request.reader_watch import ReaderWatch

LOOKS = st.lists(
    st.tuples(st.floats(0.01, 3), st.sampled_from(["reads", "reads all", "stands", "more comes"]))
)


@given(looks=LOOKS, max_stall_s=st.floats(0.5, 10))
def test_who_is_given_up(looks: list[tuple[float, str]], max_stall_s: float) -> None:
    watch = ReaderWatch(max_stall_s)
    now_s = moved_s = 100.0
    unread = 1_000
    assert not watch.note(unread, now_s)
    for seconds, kind in looks:
        now_s += seconds
        before = unread
        if kind == "reads":
            unread = max(0, unread - 1)  # however little
        elif kind == "reads all":
            unread = 0
        elif kind == "more comes":
            unread += 500
        if unread < before or not before:
            moved_s = now_s
        assert watch.note(unread, now_s) == (unread > 0 and now_s - moved_s >= max_stall_s)
