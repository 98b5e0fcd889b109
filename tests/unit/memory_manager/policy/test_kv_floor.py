"""KV that is kept for replicas: what each was guaranteed, and one longest sequence for all of a worker."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.planner_views import deployment_view

from memory_manager.config import PlannerConfig
from memory_manager.kv_spec import PAGE_BYTES as PAGE
from memory_manager.policy.kv_floor import KVFloor
from memory_manager.policy.plan_types import (
    Action,
    DemandView,
    DeploymentView,
    DeviceView,
    Load,
    Plan,
    PlannerState,
    ReplicaView,
    SetKVLease,
    Sleep,
    WorkerView,
)
from memory_manager.policy.planner import plan
from memory_manager.policy.residency import Residency
from memory_manager.policy.what_if import Verdict, way_in

NOW = 100.0
CONFIG = PlannerConfig()


class Need(NamedTuple):
    kv_guarantee_bytes: int
    kv_longest_bytes: int


needs = st.builds(Need, st.integers(0, 9), st.integers(0, 9))


def floor_of(there: list[Need], *, is_elastic: bool) -> KVFloor:
    floor = KVFloor(0, is_elastic=is_elastic)
    for number, each in enumerate(there):
        floor.add(str(number), each)
    return floor


@given(st.lists(needs))
def test_one_sequence_of_any_model_fits_beside_what_is_guaranteed_to_others(there: list[Need]) -> None:
    floor_bytes = floor_of(there, is_elastic=True).num_bytes
    own_bytes = sum(each.kv_guarantee_bytes for each in there)
    wanted = [own_bytes - each.kv_guarantee_bytes + each.kv_longest_bytes for each in there]
    assert floor_bytes == max([own_bytes, *wanted]), "and no byte more is kept"


@given(st.lists(needs))
def test_without_elastic_kv_each_has_a_sequence_of_its_own(there: list[Need]) -> None:
    assert floor_of(there, is_elastic=False).num_bytes == sum(map(max, there))


@given(st.lists(needs, min_size=1), needs, st.booleans(), st.data())
def test_the_floor_follows_who_comes_and_goes(
    there: list[Need], coming: Need, is_elastic: bool, data: st.DataObject
) -> None:
    floor = KVFloor(3, is_elastic=is_elastic)
    for number, each in enumerate(there):
        before = floor.num_bytes
        growth_bytes = floor.growth_bytes(each)
        floor.add(str(number), each)
        assert floor.num_bytes == before + growth_bytes
    leaving = data.draw(st.sets(st.sampled_from([str(number) for number in range(len(there))])))
    expected = floor.bytes_if(leaving, coming)
    for replica_id in leaving:
        floor.remove(replica_id)
    floor.add("new", coming)
    assert floor.num_bytes == expected


def model(name: str, weights_pages: int, longest_pages: int, **values: Any) -> DeploymentView:
    return deployment_view(
        name,
        weights_pages * PAGE,
        values.pop("guarantee_pages", 0) * PAGE,
        kv_longest_bytes=longest_pages * PAGE,
        **values,
    )


def waiting(name: str, weights_pages: int, longest_pages: int, **values: Any) -> DeploymentView:
    return model(name, weights_pages, longest_pages, demand=DemandView(1, NOW - 1, 0, (NOW + 1,)), **values)


def replica(deployment: DeploymentView, *, is_there: bool = False, **values: Any) -> ReplicaView:
    there: dict[str, Any] = {"worker_id": "w", "lease_bytes": deployment.weights_bytes} if is_there else {}
    return ReplicaView(
        f"{deployment.name}/0",
        deployment.name,
        Residency.RESIDENT if is_there else Residency.COLD,
        deployment.weights_bytes,
        deployment.kv_guarantee_bytes,
        kv_longest_bytes=deployment.kv_longest_bytes,
        **{**there, **values},
    )


def state(
    budget_pages: int, there: list[DeploymentView], coming: list[DeploymentView], **worker: Any
) -> PlannerState:
    """All KV that there can be is leased already, so that nothing has to shrink for what comes."""
    weights_bytes = sum(each.weights_bytes for each in (*there, *coming))
    kv_bytes = max(PAGE, budget_pages * PAGE - weights_bytes)
    return PlannerState(
        (DeviceView("cpu", budget_pages * PAGE),),
        (WorkerView("w", "cpu", kv_bytes, kv_bytes, **worker),),
        (*there, *coming),
        (*(replica(each, is_there=True) for each in there), *(replica(each) for each in coming)),
    )


def decide(made: PlannerState) -> Plan:
    return plan(made, NOW, CONFIG)


def kinds(made: Plan) -> list[tuple[type[Action], str]]:
    return [(type(each), each.replica_id) for each in made.actions if not isinstance(each, SetKVLease)]


def test_models_share_one_longest_sequence() -> None:
    """Two of 10 pages of weights and sequences of 8, on a budget that would not hold a sequence for each."""
    made = state(29, [model("a", 10, 8)], [waiting("b", 10, 8)])
    assert kinds(decide(made)) == [(Load, "b/0")]
    fixed = state(29, [model("a", 10, 8)], [waiting("b", 10, 8)], elastic_kv=False)
    assert kinds(decide(fixed)) == [(Sleep, "a/0")]


def test_what_an_operator_guaranteed_is_kept_beside_it() -> None:
    there = [model("a", 10, 8, guarantee_pages=3)]
    # Of a's sequence 5 pages are not its own, so b's of 8 is the longest that is shared: 20 + 1 + 3 + 8.
    assert kinds(decide(state(32, there, [waiting("b", 10, 8)]))) == [(Load, "b/0")]
    assert kinds(decide(state(31, there, [waiting("b", 10, 8)]))) == [(Sleep, "a/0")]


def test_the_longest_sequence_that_leaves_makes_room_for_a_heavier_model() -> None:
    """a: 10 pages of weights and sequences of 18; b: 20 and 2. What a frees is more than its weights."""
    found = decide(state(30, [model("a", 10, 18)], [waiting("b", 20, 2)]))
    assert kinds(found) == [(Sleep, "a/0")]
    [sleep] = [each for each in found.actions if isinstance(each, Sleep)]
    assert sleep.figures["freed_bytes"] == 28 * PAGE


def test_a_lease_shrinks_to_what_is_kept_and_no_further() -> None:
    there = [model("a", 10, 8), model("b", 10, 6, guarantee_pages=4)]
    busy = state(100, there, [waiting("c", 66, 0)])
    assert kinds(decide(busy)) == [(Load, "c/0")], "66 of weights beside 20, a page, 4 and 8"
    too_much = state(100, there, [waiting("c", 68, 0)])
    assert (Load, "c/0") not in kinds(decide(too_much))


@pytest.mark.parametrize(("longest_pages", "fits"), [(9, True), (10, False)])
def test_what_can_never_fit_shares_the_sequence_of_pinned_models(longest_pages: int, fits: bool) -> None:
    """Pinned: 10 of weights and sequences of 9; b: 10 of weights."""
    pinned = model("a", 10, 9, pinned=True)
    found = decide(state(30, [pinned], [waiting("b", 10, longest_pages)]))
    assert ("b" in found.refusals) == (not fits)
    if not fits:
        assert "it needs 40 MiB (20 MiB of weights, 20 MiB of KV" in found.refusals["b"]
        assert "at most 38 MiB for it" in found.refusals["b"]


def test_what_would_come_in_is_told_by_the_same_rule() -> None:
    found = way_in(state(29, [model("a", 10, 8)], [model("b", 10, 8)]), "b", NOW, CONFIG)
    assert found.verdict is Verdict.COMES
