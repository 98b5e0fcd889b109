"""Replicas as the chooser weighs them, worked out from what is known of them."""

from __future__ import annotations

import math
from typing import Any

import pytest
from support.planner_views import deployment_view

from memory_manager.config import PlannerConfig
from memory_manager.policy.arrivals import ArrivalWindow
from memory_manager.policy.plan_types import DemandView, DeploymentView, ReplicaView
from memory_manager.policy.residency import Residency
from memory_manager.policy.stakes import Standing, horizon_s
from memory_manager.policy.standings import guest_s, of_resident, of_wanted, stay_s, weight_of

CONFIG = PlannerConfig(ttft_target_s=1.0)
NOW = 1000.0
BACK_S = 0.5
VISIT_S = stay_s(BACK_S, is_guest=True)


def model(priority: int = 0, **values: Any) -> DeploymentView:
    view = deployment_view("a", weights_bytes=10, kv_guarantee_bytes=5, priority=priority)
    return view._replace(**{"reload_s": BACK_S, **values})


def resident(
    deployment: DeploymentView, *, num_up: int = 1, may_leave: bool = True, **values: Any
) -> Standing:
    view = ReplicaView("a/0", "a", Residency.RESIDENT, 10, 5, **{"worker_id": "w", **values})
    return of_resident(view, deployment, 15, num_up, may_leave=may_leave, now_s=NOW, config=CONFIG)


def wanted(deployment: DeploymentView, priority: int = 0, **values: Any) -> Standing:
    view = ReplicaView("a/0", "a", Residency.WARM, 10, 5, **{"worker_id": "w", **values})
    return of_wanted(view, deployment, num_expected=0.0, priority=priority, now_s=NOW, config=CONFIG)


def test_a_resident_is_unused_after_a_pause_much_longer_than_its_own() -> None:
    def is_unused(unused_s: float, **values: Any) -> bool:
        return resident(model(**values), last_used_s=NOW - unused_s).is_unused

    assert (is_unused(9.9), is_unused(10.0)) == (False, True)
    pause_s = 12.0
    limit_s = CONFIG.unused_pauses * pause_s
    assert not is_unused(limit_s - 0.1, longest_pause_s=pause_s)
    assert is_unused(limit_s, longest_pause_s=pause_s)
    assert is_unused(60.0, longest_pause_s=9e9)
    assert not is_unused(50.0, reload_s=60.0)
    assert is_unused(60.0, reload_s=60.0)


def test_what_is_in_use_or_has_just_come_is_not_unused() -> None:
    assert resident(model()).is_unused
    assert not resident(model(), num_active=1).is_unused
    assert not resident(model(demand=DemandView(1, NOW, 0))).is_unused
    assert not resident(model(), since_s=NOW - 1).is_unused


def test_a_guest_stays_for_its_visit_and_counts_as_one_for_a_while() -> None:
    def guest(since_s: float, **values: Any) -> tuple[bool, bool]:
        standing = resident(model(), since_s=since_s, is_guest=True, **values)
        return standing.is_settled, standing.is_guest

    assert VISIT_S < guest_s(BACK_S) == 2 * horizon_s(BACK_S)
    assert guest(NOW - VISIT_S + 0.1) == (False, True)
    assert guest(NOW - VISIT_S) == (True, True)
    assert guest(NOW - guest_s(BACK_S) + 0.1) == (True, True)
    assert guest(NOW - guest_s(BACK_S)) == (True, False)


def test_who_is_no_guest_stays_for_as_long_as_it_took_to_come() -> None:
    assert not resident(model(), since_s=NOW - BACK_S + 0.1).is_settled
    standing = resident(model(), since_s=NOW - BACK_S)
    assert (standing.is_settled, standing.is_guest) == (True, False)


def test_a_visit_takes_as_long_as_coming_back_and_a_second_at_least() -> None:
    assert stay_s(0.02, is_guest=True) == 1.0
    assert stay_s(7.0, is_guest=True) == 7.0


def test_a_rhythm_takes_the_place_of_the_rate_between_two_bursts() -> None:
    def expected(earliest_in_s: float, unused_s: float = 50.0) -> tuple[float, float]:
        window = ArrivalWindow(NOW + earliest_in_s, NOW + earliest_in_s + 10)
        deployment = model(request_rate_per_s=0.3, next_arrival=window)
        standing = resident(deployment, last_used_s=NOW - unused_s)
        return standing.rate_per_s, standing.num_expected

    soon_s = horizon_s(BACK_S)
    assert expected(soon_s) == (0.0, CONFIG.expected_chance)
    assert expected(soon_s + 0.1) == (0.3 * CONFIG.unexpected_share, 0.0)
    assert expected(soon_s, unused_s=1.0) == (0.3, 0.0), "more of this burst may come"
    without = resident(model(request_rate_per_s=0.3))
    assert (without.rate_per_s, without.num_expected) == (0.3, 0.0)


def test_replicas_share_what_is_to_come() -> None:
    assert resident(model(request_rate_per_s=0.3), num_up=3).rate_per_s == pytest.approx(0.1)
    window = ArrivalWindow(NOW, NOW + 10)
    standing = resident(model(next_arrival=window), num_up=2)
    assert standing.num_expected == pytest.approx(CONFIG.expected_chance / 2)


def test_a_priority_counts_double_what_the_one_below_does() -> None:
    assert [weight_of(each) for each in (-1, 0, 1, 2)] == [0.5, 1.0, 2.0, 4.0]
    assert math.isfinite(weight_of(10**6))
    assert weight_of(-(10**6)) > 0
    assert resident(model(priority=3)).weight == 8.0
    assert wanted(model(priority=3), priority=4).weight == 16.0, "that of the requests, not of the model"


def test_slack_is_what_is_left_until_the_latest_moment_the_least_first() -> None:
    assert resident(model(), latest_s=(NOW + 5, NOW - 1)).slacks_s == (-1, 5)
    demand = DemandView(2, NOW - 3, 0, latest_s=(NOW + 2, NOW + 1))
    assert wanted(model(demand=demand)).slacks_s == (1, 2)
    assert not len(wanted(model()).slacks_s)


def test_a_fresh_request_has_the_target_less_what_its_first_token_takes() -> None:
    deployment = model(first_token_s=0.25)
    assert resident(deployment).fresh_slack_s == wanted(deployment).fresh_slack_s == 0.75


def test_who_waits_has_waited_since_its_arrival_or_since_its_model_left() -> None:
    deployment = model(demand=DemandView(1, NOW - 30, 0))
    assert wanted(deployment, since_s=NOW - 99).waited_s == 30
    assert wanted(deployment, since_s=NOW - 10).waited_s == 10
    assert wanted(model(), since_s=NOW - 10).waited_s == 0


def test_a_resident_frees_what_it_is_told_to_and_a_newcomer_needs_weights_and_guarantee() -> None:
    assert (resident(model()).num_bytes, wanted(model()).num_bytes) == (15, 15)
    assert not resident(model()).is_wanted
    assert not resident(model(), may_leave=False).may_leave
    demand = DemandView(1, NOW, 0, latest_s=(NOW,))
    assert wanted(model(demand=demand)).is_wanted
