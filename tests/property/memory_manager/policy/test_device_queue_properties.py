"""The order in which a queue shows who waits is that in which they are served."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from memory_manager.policy.claim import RequestClaim
from memory_manager.policy.device_queue import DeviceQueue, QueuePolicy
from memory_manager.policy.fairness import ServiceCounters

NOW_S = 5.0
REQUESTS = st.lists(
    st.tuples(
        st.sampled_from("ab"), st.sampled_from("xyz"), st.integers(0, 2), st.integers(0, 9), st.integers(0, 3)
    ),
    max_size=20,  # so few that no turn of a late one comes
)


@given(
    policy=st.sampled_from(QueuePolicy), requests=REQUESTS, services_s=st.lists(st.floats(0, 9), max_size=3)
)
def test_what_is_shown_is_the_order_of_service(
    policy: QueuePolicy, requests: list[tuple[str, str, int, int, int]], services_s: list[float]
) -> None:
    counters = ServiceCounters()
    queue: DeviceQueue[RequestClaim] = DeviceQueue(policy, counters)
    for arrival, (model, tenant, priority, due_s, expected_s) in enumerate(requests):
        claim = RequestClaim(
            *(model, arrival, 0.0, due_s, 1.0, priority, tenant), due_s=due_s, expected_s=expected_s
        )
        queue.add(claim, 0.0)
    for tenant, seconds in zip("xyz", services_s, strict=False):
        counters.charge(tenant, seconds, 1.0)
    shown = queue.in_order(NOW_S)
    late = {id(each) for each in queue.note_late(NOW_S)}
    assert {id(each) for each, is_late in shown if is_late} == late
    served = []
    while (first := queue.next("ab", lambda each: None, NOW_S)) is not None:
        queue.grant(first)
        served.append(first)
    assert [each for each, _ in shown] == served
