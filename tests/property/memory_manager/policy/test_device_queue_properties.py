"""The order in which a queue shows who waits is that in which they are served, and what is ahead of a newcomer is, in
sum, what is shown before it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from memory_manager.policy.claim import Backlog, RequestClaim
from memory_manager.policy.device_queue import DeviceQueue, QueuePolicy
from memory_manager.policy.fairness import ServiceCounters

NOW_S = 5.0
REQUESTS = st.lists(
    st.tuples(
        st.sampled_from("ab"), st.sampled_from("xyz"), st.integers(0, 2), st.integers(0, 9), st.integers(0, 3)
    ),
    max_size=20,  # so few that no turn of a late one comes
)


def filled(
    policy: QueuePolicy, requests: list[tuple[str, str, int, int, int]], services_s: list[float]
) -> DeviceQueue[RequestClaim]:
    counters = ServiceCounters()
    queue: DeviceQueue[RequestClaim] = DeviceQueue(policy, counters)
    for arrival, (model, tenant, priority, due_s, expected_s) in enumerate(requests):
        claim = RequestClaim(
            *(model, arrival, 0.0, due_s, 1.0, priority, tenant),
            due_s=due_s,
            expected_s=expected_s,
            num_prompt=1 + 7 * arrival,
            num_choices=1 + arrival % 3,
            waits_for_room=arrival % 2 > 0,
        )
        queue.add(claim, 0.0)
    for tenant, seconds in zip("xyz", services_s, strict=False):
        counters.charge(tenant, seconds, 1.0)
    return queue


@given(
    policy=st.sampled_from(QueuePolicy),
    requests=REQUESTS,
    services_s=st.lists(st.floats(0, 9), max_size=3),
    gone=st.sets(st.integers(0, 19)),
    newcomer=st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.integers(0, 2), st.integers(0, 9)),
)
def test_what_is_ahead_is_the_sum_of_what_is_shown_before(
    policy: QueuePolicy,
    requests: list[tuple[str, str, int, int, int]],
    services_s: list[float],
    gone: set[int],
    newcomer: tuple[str, str, int, int],
) -> None:
    queue = filled(policy, requests, services_s)
    queue.note_late(NOW_S)
    for each in [each for each in queue if each.arrival in gone]:
        queue.discard(each)
    model, tenant, priority, due_s = newcomer
    claim = RequestClaim(model, 99, NOW_S, due_s, 1.0, priority, tenant, due_s=due_s)
    ahead = queue.ahead_of(claim, NOW_S)
    queue.add(claim, NOW_S)
    summed: dict[str, Backlog] = {}
    for each, _ in queue.in_order(NOW_S):
        if each is claim:
            break
        summed.setdefault(each.model, Backlog()).add(Backlog.of(each))
    assert ahead == summed


@given(
    policy=st.sampled_from(QueuePolicy), requests=REQUESTS, services_s=st.lists(st.floats(0, 9), max_size=3)
)
def test_what_is_shown_is_the_order_of_service(
    policy: QueuePolicy, requests: list[tuple[str, str, int, int, int]], services_s: list[float]
) -> None:
    queue = filled(policy, requests, services_s)
    shown = queue.in_order(NOW_S)
    late = {id(each) for each in queue.note_late(NOW_S)}
    assert {id(each) for each, is_late in shown if is_late} == late
    served = []
    while (first := queue.next("ab", lambda each: None, NOW_S)) is not None:
        queue.grant(first)
        served.append(first)
    assert [each for each, _ in shown] == served
