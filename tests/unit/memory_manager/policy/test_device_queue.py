"""The order in which waiting requests are served."""

from __future__ import annotations

import pytest

from memory_manager.policy.claim import Obstacle, RequestClaim
from memory_manager.policy.device_queue import DeviceQueue, QueuePolicy
from memory_manager.policy.fairness import ServiceCounters


def claim(arrival: int, due_s: float = 10.0, **fields: object) -> RequestClaim:
    values = {
        "model": "a",
        "tenant": "t",
        "at_s": float(arrival),
        "deadline_s": 99.0,
        "due_s": due_s,
        **fields,
    }
    return RequestClaim(arrival=arrival, tpot_target_s=0.1, **values)  # type: ignore[arg-type]


def if_small(request: RequestClaim) -> Obstacle | None:
    return None if request.num_prompt < 100 else Obstacle.KV


def served(
    policy: QueuePolicy, *claims: RequestClaim, service_s: dict[str, float] | None = None, now_s: float = 0.0
) -> list[int]:
    """Arrivals in the order in which they are granted."""
    counters = ServiceCounters()
    queue: DeviceQueue[RequestClaim] = DeviceQueue(policy, counters)
    for each in claims:
        queue.add(each, now_s)
    for tenant, seconds in (service_s or {}).items():
        counters.charge(tenant, seconds, weight=1.0)
    order = []
    while (first := queue.next(["a", "b"], lambda each: None, now_s)) is not None:
        queue.grant(first)
        order.append(first.arrival)
    assert not len(queue)
    return order


def test_each_policy_has_its_order() -> None:
    def claims() -> list[RequestClaim]:
        return [
            claim(1, 9.0, expected_s=3.0, tenant="u"),
            claim(2, 8.0, expected_s=1.0),
            claim(3, 7.0, expected_s=2.0, priority=1),
        ]

    assert served(QueuePolicy.FCFS, *claims()) == [1, 2, 3]
    assert served(QueuePolicy.SJF, *claims()) == [2, 3, 1]
    assert served(QueuePolicy.VTC, *claims(), service_s={"u": 5.0}) == [2, 3, 1]
    assert served(QueuePolicy.SLO, *claims(), service_s={"u": 5.0}) == [3, 2, 1]


def test_within_a_tenant_the_earliest_due_goes_first() -> None:
    assert served(QueuePolicy.SLO, claim(1, 9.0), claim(2, 8.0, model="b"), claim(3, 8.5)) == [2, 3, 1]


def test_a_late_one_waits_as_best_effort_and_behind_its_tenants_that_are_in_time() -> None:
    late = claim(1, due_s=4.0, priority=5)
    assert served(QueuePolicy.SLO, late, claim(2, priority=1, tenant="u"), claim(3), now_s=5.0) == [2, 3, 1]
    worse = claim(4, priority=-1)
    assert served(QueuePolicy.SLO, late, worse, now_s=5.0) == [1, 4]


def test_a_tenant_gains_nothing_by_others_that_are_late() -> None:
    late, in_time = claim(1, due_s=4.0), claim(2, tenant="u")
    assert served(QueuePolicy.SLO, late, in_time, service_s={"u": 5.0}, now_s=5.0) == [1, 2]
    assert served(QueuePolicy.SLO, late, in_time, service_s={"t": 5.0}, now_s=5.0) == [2, 1]


def test_one_grows_late_while_it_waits() -> None:
    queue: DeviceQueue[RequestClaim] = DeviceQueue(QueuePolicy.SLO, ServiceCounters())
    soon, later = claim(1, due_s=2.0), claim(2, due_s=9.0)
    for each in (soon, later):
        queue.add(each, 0.0)
    assert queue.next(["a"], lambda each: None, 1.0) is soon
    assert queue.note_late(3.0) == [soon]
    assert queue.next(["a"], lambda each: None, 3.0) is later
    assert queue.ahead_of(claim(3, due_s=1.0), 3.0)["a"].num_requests == 2
    assert queue.ahead_of(claim(3, due_s=5.0), 3.0) == {}


def test_nobody_goes_before_a_first_that_has_no_room() -> None:
    queue: DeviceQueue[RequestClaim] = DeviceQueue(QueuePolicy.SLO, ServiceCounters())
    large, small = claim(1, due_s=5.0, num_prompt=900), claim(2, due_s=9.0)
    for each in (large, small):
        queue.add(each, 0.0)
    assert queue.next(["a"], if_small, 0.0) is None
    queue.discard(large)
    assert queue.next(["a"], if_small, 0.0) is small


def test_a_model_that_cannot_be_served_holds_up_no_other() -> None:
    queue: DeviceQueue[RequestClaim] = DeviceQueue(QueuePolicy.SLO, ServiceCounters())
    queue.add(claim(1, due_s=1.0, model="away"), 0.0)
    there = claim(2, due_s=9.0)
    queue.add(there, 0.0)
    assert queue.next(["a"], lambda each: None, 0.0) is there


def test_what_is_left_to_other_tenants_holds_up_none_of_them() -> None:
    queue: DeviceQueue[RequestClaim] = DeviceQueue(QueuePolicy.SLO, ServiceCounters())
    for number in range(3):
        queue.add(claim(number, model="ab"[number % 2], tenant="flood"), 0.0)
    modest = claim(9, tenant="modest")
    queue.add(modest, 0.0)
    assert (
        queue.next(["a", "b"], lambda each: Obstacle.SHARE if each.tenant == "flood" else None, 0.0) is modest
    )
    assert queue.next(["a", "b"], lambda each: Obstacle.SHARE, 0.0) is None


def test_of_32_grants_one_goes_to_the_late_one_that_came_first() -> None:
    queue: DeviceQueue[RequestClaim] = DeviceQueue(QueuePolicy.SLO, ServiceCounters())
    late = [claim(number, due_s=-1.0) for number in (0, 1)]
    for each in (*late, *(claim(number) for number in range(2, 80))):
        queue.add(each, 0.0)
    order = []
    for _ in range(64):
        first = queue.next(["a"], lambda each: None, 0.0)
        assert first is not None
        queue.grant(first)
        order.append(first.arrival)
    assert (order[31], order[63]) == (0, 1)


def test_a_late_one_whose_turn_it_is_holds_up_nobody_until_it_has_been_passed_over_often() -> None:
    queue: DeviceQueue[RequestClaim] = DeviceQueue(QueuePolicy.SLO, ServiceCounters())
    large = claim(0, due_s=-1.0, num_prompt=900)
    queue.add(large, 0.0)
    for number in range(1, 1100):
        queue.add(claim(number), 0.0)
    for _ in range(32 * 32 - 1):
        first = queue.next(["a"], if_small, 0.0)
        assert first is not None
        assert first is not large
        queue.grant(first)
    assert queue.next(["a"], if_small, 0.0) is None
    assert queue.next(["a"], lambda each: None, 0.0) is large
    queue.grant(large)
    assert queue.next(["a"], if_small, 0.0) is not None


def test_a_late_one_that_its_own_model_keeps_waiting_never_stops_other_models() -> None:
    queue: DeviceQueue[RequestClaim] = DeviceQueue(QueuePolicy.SLO, ServiceCounters())
    queue.add(claim(0, due_s=-1.0), 0.0)
    for number in range(1, 1100):
        queue.add(claim(number, model="b"), 0.0)
    for _ in range(1099):
        first = queue.next(["a", "b"], lambda each: Obstacle.SLOTS if each.model == "a" else None, 0.0)
        assert first is not None
        queue.grant(first)


def test_a_late_one_of_a_low_priority_has_its_turn_among_late_ones() -> None:
    queue: DeviceQueue[RequestClaim] = DeviceQueue(QueuePolicy.SLO, ServiceCounters())
    low = claim(0, due_s=-1.0, priority=-1, tenant="low")
    queue.add(low, 0.0)
    for number in range(1, 40):
        queue.add(claim(number, due_s=-1.0), 0.0)
    order = []
    for _ in range(33):
        first = queue.next(["a"], lambda each: None, 0.0)
        assert first is not None
        queue.grant(first)
        order.append(first)
    assert low in order


def test_what_its_own_model_keeps_from_beginning_holds_up_no_other_model() -> None:
    queue: DeviceQueue[RequestClaim] = DeviceQueue(QueuePolicy.SLO, ServiceCounters())
    for number in range(3):
        queue.add(claim(number, due_s=1.0 + number), 0.0)
    other = claim(9, due_s=9.0, model="b")
    queue.add(other, 0.0)
    asked = []

    def obstacle(request: RequestClaim) -> Obstacle | None:
        asked.append(request.arrival)
        return Obstacle.SLOTS if request.model == "a" else None

    assert queue.next(["a", "b"], obstacle, 0.0) is other
    assert asked == [0, 9]


def test_a_tenant_that_comes_back_has_a_claim_to_a_burst_and_no_more() -> None:
    counters = ServiceCounters()
    counters.arrive("busy")
    counters.charge("busy", 100.0, weight=2.0)
    assert counters.of("busy") == pytest.approx(50.0)
    counters.arrive("idle")
    assert counters.of("idle") == pytest.approx(45.0)
    counters.leave("busy")
    counters.leave("idle")
    counters.arrive("new")  # after all have gone
    assert counters.of("new") == pytest.approx(40.0)
    counters.leave("new")
    counters.arrive("newest")
    assert counters.of("newest") == pytest.approx(40.0)
