"""Whatever copies a host holds and whatever is to be loaded: its budget is kept, and every load has a way."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from memory_manager.policy.host_room import HostRoom, Way
from memory_manager.policy.plan_types import CopyView, HostView, ReplicaView
from memory_manager.policy.residency import Residency

KEYS = "abcdefgh"

holds = st.tuples(st.sampled_from(KEYS), st.sampled_from(["stays", "may go", "is going"]), st.integers(0, 9))


@given(
    sizes=st.lists(st.integers(1, 10), min_size=len(KEYS), max_size=len(KEYS)),
    held=st.lists(holds, max_size=10),
    free_bytes=st.integers(0, 12),
    loads=st.lists(st.sampled_from(KEYS), max_size=6),
    kept=st.sets(st.integers(0, 9)),
)
def test_the_budget_is_kept_and_a_load_has_no_copy_only_if_there_is_no_room(
    sizes: list[int],
    held: list[tuple[str, str, int]],
    free_bytes: int,
    loads: list[str],
    kept: set[int],
) -> None:
    size_of = dict(zip(KEYS, sizes, strict=True))
    copies = tuple(
        CopyView(str(number), key, size_of[key], state == "may go", state == "is going", float(unused_s))
        for number, (key, state, unused_s) in enumerate(held)
    )
    kept_ids = {str(number) for number in kept}
    held_keys = {copy.artifact_key for copy in copies}
    stuck = {
        copy.artifact_key
        for copy in copies
        if not copy.is_going and (not copy.may_go or copy.replica_id in kept_ids)
    }
    # Copies that are going already go, whoever else is kept.
    most_bytes = free_bytes + sum(
        size_of[key]
        for key in held_keys - stuck
        if key not in {copy.artifact_key for copy in copies if copy.replica_id in kept_ids}
        or all(copy.is_going for copy in copies if copy.artifact_key == key)
    )
    budget_bytes = free_bytes + sum(size_of[key] for key in held_keys)
    room = HostRoom(HostView(budget_bytes, free_bytes, copies))
    ways: dict[str, Way] = {}
    for key in loads:
        need_bytes = 0 if key in held_keys else size_of[key]
        replica = ReplicaView("new", key, Residency.COLD, 0, 0, artifact_key=key, copy_bytes=need_bytes)
        num_dropped, admitted = (
            len(room.dropped),
            sum(size_of[each] for each, way in ways.items() if way is not Way.FILE),
        )
        way = room.admit(replica, kept_ids)
        if key in held_keys:
            assert way is (Way.COPY if need_bytes <= budget_bytes else Way.FILE)
        elif ways.get(key, Way.FILE) is not Way.FILE:
            assert way is ways[key], "one copy serves both"
        else:
            assert (way is Way.FILE) == (admitted + need_bytes > most_bytes)
            ways[key] = way
        if way is not Way.LATER:
            assert len(room.dropped) == num_dropped, "nothing goes for what comes at once"
    assert sum(size_of[key] for key, way in ways.items() if way is Way.COPY) <= free_bytes
    dropped = {copy.replica_id for copy in room.dropped}
    assert len(dropped) == len(room.dropped)
    assert not dropped & kept_ids
    gone = dropped | {copy.replica_id for copy in copies if copy.is_going}
    left = {copy.artifact_key for copy in copies if copy.replica_id not in gone}
    admitted = sum(size_of[key] for key, way in ways.items() if way is not Way.FILE)
    assert admitted + sum(size_of[key] for key in left) <= budget_bytes
