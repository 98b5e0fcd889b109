"""The planner with a clock held in the hand. Sizes are in pages; budget 40 less 1 of reserve, so that with
the worker's own page of KV, 38 are for weights and KV guarantees."""

import math
from dataclasses import replace
from typing import Any

import pytest
from support.planner_views import deployment_view

from memory_manager.config import PlannerConfig
from memory_manager.kv_spec import PAGE_BYTES as PAGE
from memory_manager.policy.chooser import Exchange
from memory_manager.policy.plan_types import (
    Action,
    DemandView,
    DeploymentView,
    DeviceView,
    Drain,
    Load,
    Plan,
    PlannerState,
    ReplicaView,
    Resume,
    SetKVLease,
    Sleep,
    Unload,
    Wake,
    WorkerView,
)
from memory_manager.policy.planner import plan
from memory_manager.policy.residency import ON_DEVICE, Residency
from memory_manager.policy.stakes import guard_s

CONFIG = PlannerConfig(starve_after_s=60)
NOW = 100.0


def model(name: str, **policy: Any) -> DeploymentView:
    policy.setdefault("request_rate_per_s", 0.1)
    return deployment_view(name, weights_bytes=10 * PAGE, kv_guarantee_bytes=5 * PAGE, **policy)


def waiting(since_s: float = NOW, deadline_s: float = math.inf, priority: int = 0) -> DemandView:
    return DemandView(1, since_s, priority, (min(deadline_s, since_s + CONFIG.ttft_target_s),))


def replica(name: str, residency: Residency = Residency.COLD, **values: Any) -> ReplicaView:
    if residency in ON_DEVICE:
        values.setdefault("lease_bytes", 10 * PAGE)
    if residency in ON_DEVICE or residency is Residency.WARM:
        values.setdefault("worker_id", "w")
    values.setdefault("since_s", 0.0)
    return ReplicaView(f"{name}/0", name, residency, 10 * PAGE, 5 * PAGE, **values)


def state(
    deployments: list[DeploymentView], replicas: list[ReplicaView], kv_pages: int | None = None
) -> PlannerState:
    """With a KV lease of ``kv_pages``, by default all that is left over."""
    weights = sum(each.lease_bytes for each in replicas)
    kv_bytes = 39 * PAGE - weights if kv_pages is None else kv_pages * PAGE
    return PlannerState(
        (DeviceView("cpu", 40 * PAGE, PAGE),),
        (WorkerView("w", "cpu", kv_bytes, kv_bytes),),
        tuple(deployments),
        tuple(replicas),
    )


def decide(made: PlannerState, now_s: float = NOW) -> Plan:
    return plan(made, now_s, CONFIG)


def actions(made: PlannerState, now_s: float = NOW) -> dict[type[Action], list[str]]:
    """Replica ids by kind of action; reasons left out."""
    found: dict[type[Action], list[str]] = {}
    for action in decide(made, now_s).actions:
        name = str(action.num_bytes // PAGE) if isinstance(action, SetKVLease) else action.replica_id
        found.setdefault(type(action), []).append(name)
    return found


def test_nothing_wanted_and_all_memory_leased_means_nothing_to_do() -> None:
    made = decide(state([model("a")], [replica("a", Residency.RESIDENT)]))
    assert made.actions == ()
    assert made.next_at_s == math.inf


def test_an_idle_device_gives_all_memory_to_kv() -> None:
    assert actions(state([model("a")], [replica("a")], kv_pages=0)) == {SetKVLease: ["39"]}


def test_kv_shrinks_before_a_load_and_the_load_follows_when_the_ledger_is_free() -> None:
    deployments = [model("a", demand=waiting())]
    assert actions(state(deployments, [replica("a")])) == {SetKVLease: ["29"]}
    assert actions(state(deployments, [replica("a")], kv_pages=29)) == {Load: ["a/0"]}


def test_a_sleeper_is_woken_in_its_worker() -> None:
    made = state([model("a", demand=waiting())], [replica("a", Residency.WARM)], kv_pages=29)
    assert actions(made) == {Wake: ["a/0"]}


def test_kv_never_shrinks_below_the_guarantees() -> None:
    """Two resident take 20 of weights and 10 of guarantees: a third does not fit, however small KV gets."""
    deployments = [model("a"), model("b"), model("c", demand=waiting())]
    busy = {"num_active": 1, "latest_s": (NOW + 0.5,)}
    replicas = [
        replica("a", Residency.RESIDENT, **busy),
        replica("b", Residency.RESIDENT, **busy),
        replica("c"),
    ]
    assert actions(state(deployments, replicas)) == {}


def test_the_idle_one_goes_first_and_the_lease_waits_for_its_bytes() -> None:
    deployments = [model("a"), model("b"), model("c", demand=waiting())]
    replicas = [
        replica("a", Residency.RESIDENT, num_active=1, latest_s=(NOW + 0.5,)),
        replica("b", Residency.RESIDENT),
        replica("c", Residency.WARM),
    ]
    assert actions(state(deployments, replicas)) == {Sleep: ["b/0"]}
    # b has gone: its 10 pages are free, and are c's, not KV's.
    replicas[1] = replica("b", Residency.WARM)
    assert actions(state(deployments, replicas, kv_pages=19)) == {Wake: ["c/0"]}


@pytest.mark.parametrize(
    ("cheaper", "dearer"),
    [
        ({"request_rate_per_s": 0.01}, {"request_rate_per_s": 0.02}),
        ({"reload_s": 1.0}, {"reload_s": 2.0}),
        ({"priority": 0}, {"priority": 1}),
        ({}, {"pinned": True}),
    ],
)
def test_the_victim_is_the_one_whose_absence_costs_least(
    cheaper: dict[str, Any], dearer: dict[str, Any]
) -> None:
    for name_of_cheaper, name_of_dearer in (("a", "b"), ("b", "a")):
        deployments = [model(name_of_cheaper, **cheaper), model(name_of_dearer, **dearer)]
        deployments.append(model("c", demand=waiting()))
        replicas = [replica("a", Residency.RESIDENT), replica("b", Residency.RESIDENT), replica("c")]
        assert actions(state(deployments, replicas)) == {Sleep: [f"{name_of_cheaper}/0"]}


def contended(waited_s: float, slack_s: float, **values: Any) -> PlannerState:
    """a and b are busy, with requests of so much slack, and c waits."""
    deployments = [model("a"), model("b"), model("c", demand=waiting(NOW - waited_s))]
    values = {"num_active": 3, "latest_s": (NOW + slack_s,) * 3, **values}
    residents = [replica(name, Residency.RESIDENT, since_s=NOW - 60, **values) for name in "ab"]
    return state(deployments, [*residents, replica("c")])


def test_a_busy_one_sleeps_for_others_if_its_requests_can_stand_it() -> None:
    assert actions(contended(waited_s=0.25, slack_s=0.5)) == {}
    made = contended(waited_s=0.25, slack_s=600)
    assert actions(made) == {}, "c can still wait"
    last_s = NOW + 2 - 0.25 - 1.0 - guard_s(1.0)
    assert decide(made).next_at_s == pytest.approx(last_s)
    assert actions(made, last_s) == {Sleep: ["a/0"]}
    wanted_at_s = last_s - CONFIG.kv_short_s
    short = replace(made, workers=tuple(replace(each, kv_wanted_at_s=last_s) for each in made.workers))
    assert actions(short, last_s) == {}, "the KV of a would be taken"
    short = replace(made, workers=tuple(replace(each, kv_wanted_at_s=wanted_at_s) for each in made.workers))
    assert actions(short, last_s) == {Sleep: ["a/0"]}


def test_who_leaves_has_to_wait_for_all_that_wait_and_may_come() -> None:
    made = contended(waited_s=0.75, slack_s=100)
    assert actions(made) == {Sleep: ["a/0"]}
    more = [model(f"d{number}", demand=waiting(NOW - 0.1)) for number in range(8)]
    replicas = [replica(each.name)._replace(weights_bytes=80 * PAGE) for each in more]
    crowded = state([*made.deployments, *more], [*made.replicas, *replicas])
    assert Sleep not in actions(crowded), "its requests would miss their targets"
    disabled = [each._replace(policy=replace(each.policy, enabled=False)) for each in more]
    assert actions(state([*made.deployments, *disabled], [*made.replicas, *replicas])) == actions(made)


def test_for_a_late_request_a_busy_one_sleeps_once_it_starves() -> None:
    made = contended(waited_s=59.7, slack_s=60)
    assert actions(made) == {}
    assert decide(made).next_at_s == pytest.approx(NOW + CONFIG.reweigh_s)
    assert actions(contended(waited_s=60, slack_s=60)) == {Sleep: ["a/0"]}
    assert decide(contended(waited_s=60, slack_s=60)).exchanges["c"].as_guest


def test_for_a_late_request_an_unused_one_sleeps() -> None:
    made = contended(waited_s=9, slack_s=0, num_active=0, latest_s=(), last_used_s=NOW - 0.1)
    assert actions(made) == {}
    assert actions(made, NOW + 9.9) == {Sleep: ["a/0"]}
    rhythm = [each._replace(longest_pause_s=5.0) for each in made.deployments]
    assert actions(replace(made, deployments=tuple(rhythm)), NOW + 9.9) == {}
    assert actions(replace(made, deployments=tuple(rhythm)), NOW + 19.9) == {Sleep: ["a/0"]}


def test_who_came_for_late_requests_alone_makes_room_for_who_was_there_before() -> None:
    """a is asked for so often that some of its requests come too early for a wake."""
    deployments = [model("a", request_rate_per_s=0.5), model("b"), model("c", request_rate_per_s=0.3)]
    residents = [
        replica("b", Residency.RESIDENT, num_active=1, latest_s=(NOW + 60,)),
        replica("c", Residency.RESIDENT, is_guest=True, since_s=NOW - 1),
    ]
    made = state(deployments, [replica("a", Residency.WARM), *residents])
    assert actions(made) == {Sleep: ["c/0"]}
    assert actions(made, NOW - 0.5) == {}, "its visit has not ended"
    settled = replace(made, replicas=(made.replicas[0], residents[0], residents[1]._replace(is_guest=False)))
    assert actions(settled) == {}


def test_a_drain_that_nobody_needs_any_more_is_called_off() -> None:
    deployments = [model("a"), model("b"), model("c")]
    replicas = [
        replica("a", Residency.DRAINING, since_s=NOW - 1, num_active=1),
        replica("b", Residency.RESIDENT, num_active=1),
        replica("c"),
    ]
    assert actions(state(deployments, replicas)) == {Resume: ["a/0"]}


def test_who_leaves_makes_nobody_leave_to_come_back() -> None:
    """a is being put to sleep for c and has demand of its own: it waits for its turn rather than take b's place."""
    deployments = [
        model("a", demand=waiting(NOW - 5)),
        model("b"),
        model("c", demand=waiting(NOW - 9)),
    ]
    replicas = [
        replica("a", Residency.RESIDENT, num_active=1, in_flight=True, is_leaving=True),
        replica("b", Residency.RESIDENT, num_active=1),
        replica("c"),
    ]
    assert actions(state(deployments, replicas)) == {}


def test_a_sleeper_with_parked_requests_is_woken_as_for_requests_that_wait() -> None:
    parked = replica("a", Residency.WARM, num_active=2)
    demand = model("a", demand=waiting(NOW - 1))
    assert actions(state([demand], [parked], kv_pages=29)) == {Wake: ["a/0"]}
    disabled = demand._replace(policy=replace(demand.policy, enabled=False))
    assert actions(state([disabled], [parked], kv_pages=29)) == {Wake: ["a/0"]}
    assert Wake not in actions(state([disabled], [parked._replace(num_active=0)], kv_pages=29))


def test_of_two_replicas_the_one_with_parked_requests_comes_back_though_the_other_is_there() -> None:
    deployment = model("a", demand=waiting(NOW - 60), max_replicas=2)
    there = replica("a", Residency.RESIDENT, num_active=1)._replace(replica_id="a/1", worker_id="v")
    parked = replica("a", Residency.WARM, num_active=1)
    other = replica("b", Residency.RESIDENT, num_active=1, since_s=NOW - 60)
    another = replica("c", Residency.RESIDENT, num_active=1, since_s=NOW - 60)
    made = state([deployment, model("b"), model("c")], [parked, other, another], kv_pages=19)
    made = replace(
        made,
        devices=(*made.devices, DeviceView("cpu:1", 16 * PAGE)),
        workers=(*made.workers, WorkerView("v", "cpu:1", 6 * PAGE, 6 * PAGE)),
        replicas=(*made.replicas, there),
    )
    assert actions(made) == {Sleep: ["b/0"]}


def test_a_busy_one_does_not_sleep_for_demand_of_lower_priority() -> None:
    made = contended(waited_s=60, slack_s=60)
    high = [
        each._replace(policy=replace(each.policy, priority=1)) if each.demand is None else each
        for each in made.deployments
    ]
    assert actions(replace(made, deployments=tuple(high))) == {}
    urgent = [each._replace(demand=waiting(NOW - 60, priority=1)) if each.demand else each for each in high]
    assert actions(replace(made, deployments=tuple(urgent))) == {Sleep: ["a/0"]}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"priority": 1}, {}),
        ({"deadline_s": NOW + 1}, {}),
        ({"since_s": NOW - 3}, {"since_s": NOW - 2}),
        # Who can be in time comes before who is late.
        ({}, {"since_s": NOW - 31}),
    ],
)
def test_who_comes_first_when_only_one_fits(first: dict[str, Any], second: dict[str, Any]) -> None:
    for name_of_first, name_of_second in (("b", "c"), ("c", "b")):
        deployments = [
            model("a"),
            model(name_of_first, demand=waiting(**first)),
            model(name_of_second, demand=waiting(**second)),
        ]
        replicas = [
            replica("a", Residency.RESIDENT, num_active=1, since_s=NOW - 1),
            replica("b"),
            replica("c"),
        ]
        assert actions(state(deployments, replicas, kv_pages=11))[Load] == [f"{name_of_first}/0"]


def test_a_large_one_that_has_starved_gets_the_room_of_several() -> None:
    big = deployment_view("big", 20 * PAGE, 10 * PAGE, demand=waiting(NOW - 60))
    deployments = [model("a"), model("b"), big, model("small", demand=waiting(NOW - 0.1))]
    busy = {"num_active": 1, "latest_s": (NOW + 0.5,)}
    replicas = [
        replica("a", Residency.RESIDENT, **busy),
        replica("b", Residency.RESIDENT, **busy),
        ReplicaView("big/0", "big", Residency.COLD, 20 * PAGE, 10 * PAGE),
        replica("small"),
    ]
    assert actions(state(deployments, replicas)) == {Sleep: ["a/0", "b/0"]}


def test_kv_does_not_grow_into_what_a_leaving_replica_frees() -> None:
    big = deployment_view("big", 20 * PAGE, 10 * PAGE, demand=waiting(NOW - 20))
    deployments = [model("a"), model("b"), big]
    replicas = [
        replica("a", Residency.WARM),
        replica("b", Residency.RESIDENT, num_active=1, in_flight=True, is_leaving=True),
        ReplicaView("big/0", "big", Residency.COLD, 20 * PAGE, 10 * PAGE),
    ]
    assert actions(state(deployments, replicas, kv_pages=19)) == {}


def test_room_that_somebody_waits_for_is_not_given_to_who_comes_later() -> None:
    """small would fit beside a, but then big would not once a has gone."""
    made_room = Exchange("big/0", ("a/0",), as_guest=True)
    big = deployment_view("big", 25 * PAGE, 10 * PAGE, demand=waiting(NOW - 60), exchange=made_room)
    small = model("small", demand=waiting(NOW - 0.1))
    replicas = [
        replica("a", Residency.RESIDENT, num_active=1, in_flight=True, is_leaving=True),
        ReplicaView("big/0", "big", Residency.COLD, 25 * PAGE, 10 * PAGE),
        replica("small"),
    ]
    assert actions(state([model("a"), big, small], replicas)) == {}


def test_idle_timeout() -> None:
    idle = replica("a", Residency.RESIDENT, since_s=NOW - 50, last_used_s=NOW - 9)
    made = state([model("a", idle_timeout_s=10)], [idle])
    assert actions(made) == {}
    assert decide(made).next_at_s == pytest.approx(NOW + 1)
    assert actions(made, NOW + 1) == {Sleep: ["a/0"]}
    assert actions(state([model("a", idle_timeout_s=10, pinned=True)], [idle]), NOW + 1) == {}
    assert actions(state([model("a", idle_timeout_s=10)], [idle._replace(num_active=1)]), NOW + 1) == {}


def test_pinned_and_min_replicas_are_loaded_without_demand_and_held_ones_are_not() -> None:
    for policy in ({"pinned": True}, {"min_replicas": 1}):
        assert actions(state([model("a", **policy)], [replica("a")], kv_pages=29)) == {Load: ["a/0"]}
        asleep = state([model("a", held=True, **policy)], [replica("a")])
        assert actions(asleep) == {}


def test_only_a_pin_evicts_without_demand() -> None:
    residents = [replica("a", Residency.RESIDENT), replica("b", Residency.RESIDENT)]
    others = [model("a"), model("b")]
    assert actions(state([*others, model("c", min_replicas=1)], [*residents, replica("c")])) == {}
    pinned = state([*others, model("c", pinned=True)], [*residents, replica("c")])
    assert actions(pinned) == {Sleep: ["a/0"]}


def test_what_is_merely_kept_does_not_take_the_room_made_for_demand() -> None:
    """b was put to sleep for c and comes back only when there is room beside it."""
    deployments = [model("a"), model("b", min_replicas=1, priority=1), model("c", demand=waiting())]
    replicas = [
        replica("a", Residency.RESIDENT, num_active=1),
        replica("b", Residency.WARM),
        replica("c", Residency.WARM),
    ]
    assert actions(state(deployments, replicas, kv_pages=19)) == {Wake: ["c/0"]}


def test_what_a_failed_one_left_behind_is_cleared_before_it_is_tried_again() -> None:
    left = replica("a", Residency.FAILED, worker_id="w", lease_bytes=10 * PAGE, retry_at_s=NOW + 1)
    made = state([model("a", demand=waiting())], [left])
    assert actions(made) == {}
    assert actions(made, NOW + 1) == {Unload: ["a/0"]}


def test_disabled_asked_and_retired_ones_leave() -> None:
    for deployment, values in (
        (model("a", enabled=False), {}),
        (model("a", pinned=True, held=True), {"sleep_requested": True}),
    ):
        leaving = replica("a", Residency.RESIDENT, num_active=1, **values)
        assert actions(state([deployment], [leaving])) == {Drain: ["a/0"]}
        assert actions(state([deployment], [leaving._replace(num_active=0)])) == {Sleep: ["a/0"]}
    retired = replica("gone", Residency.RESIDENT, retired=True)
    assert actions(state([], [retired])) == {Unload: ["gone/0"]}
    assert actions(state([], [retired._replace(residency=Residency.WARM, lease_bytes=0)]))[Unload] == [
        "gone/0"
    ]


def test_a_failed_one_waits_for_its_time() -> None:
    failed = replica("a", Residency.FAILED, retry_at_s=NOW + 3)
    made = state([model("a", demand=waiting())], [failed], kv_pages=29)
    assert decide(made).next_at_s == pytest.approx(NOW + 3)
    assert Load not in actions(made)
    assert actions(made, NOW + 3)[Load] == ["a/0"]


def test_what_is_under_way_is_not_begun_again() -> None:
    loading = replica("a", Residency.LOADING, in_flight=True)
    assert actions(state([model("a", demand=waiting())], [loading])) == {}
    for residency in (Residency.RESIDENT, Residency.DRAINING):
        going = replica("b", residency, in_flight=True, is_leaving=True)
        assert actions(state([model("b", pinned=True)], [going])) == {}


def test_what_can_never_fit_is_refused_in_figures() -> None:
    huge = deployment_view("huge", 30 * PAGE, 9 * PAGE, demand=waiting())
    big = deployment_view("big", 20 * PAGE, 5 * PAGE, demand=waiting())
    pin = model("pin", pinned=True)
    replicas = [
        ReplicaView(f"{d.name}/0", d.name, Residency.COLD, d.weights_bytes, 0) for d in (huge, big, pin)
    ]
    refused = decide(state([huge, big, pin], replicas)).refusals
    assert set(refused) == {"huge", "big"}
    assert "78 MiB" in refused["huge"]
    assert "60 MiB of weights" in refused["huge"]
    assert "at most 46 MiB" in refused["huge"]
    # Without the pin the second one fits.
    refused = decide(state([huge, big, model("pin")], replicas)).refusals
    assert set(refused) == {"huge"}


def test_of_two_pins_that_do_not_fit_together_the_one_that_is_there_stays() -> None:
    pins = [
        deployment_view("p", 20 * PAGE, 0, pinned=True),
        deployment_view("q", 20 * PAGE, 0, pinned=True, priority=5),
    ]
    replicas = [ReplicaView(f"{each.name}/0", each.name, Residency.COLD, 20 * PAGE, 0) for each in pins]
    assert set(decide(state(pins, replicas)).refusals) == {"p"}
    replicas[0] = replicas[0]._replace(residency=Residency.RESIDENT, worker_id="w", lease_bytes=20 * PAGE)
    assert set(decide(state(pins, replicas)).refusals) == {"q"}


def test_two_devices_are_filled_by_fit_and_one_deployment_is_not_twice_on_a_worker() -> None:
    devices = (DeviceView("cpu:0", 20 * PAGE), DeviceView("cpu:1", 40 * PAGE))
    workers = (WorkerView("w0", "cpu:0"), WorkerView("w1", "cpu:1"))
    wanted = model("a", min_replicas=2, max_replicas=2)
    replicas = tuple(replica("a")._replace(replica_id=f"a/{i}") for i in range(2))
    made = plan(PlannerState(devices, workers, (wanted,), replicas), NOW, CONFIG)
    loads = [(each.replica_id, each.worker_id) for each in made.actions if isinstance(each, Load)]
    assert loads == [("a/0", "w1"), ("a/1", "w0")]
    leases = {each.worker_id: each.num_bytes // PAGE for each in made.actions if isinstance(each, SetKVLease)}
    assert leases == {"w0": 10, "w1": 30}


def test_a_replica_that_is_asked_to_sleep_finishes_what_it_runs() -> None:
    asked = replica("a", Residency.DRAINING, num_active=1, sleep_requested=True, since_s=0.0)
    assert actions(state([model("a")], [asked])) == {}
