"""No tenant that keeps waiting is left behind another by more than one request each."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from memory_manager.policy.claim import RequestClaim
from memory_manager.policy.device_queue import DeviceQueue, QueuePolicy
from memory_manager.policy.fairness import ServiceCounters, jain_index

MOST_S = 4.0


@given(
    policy=st.sampled_from([QueuePolicy.VTC, QueuePolicy.SLO]),
    weights=st.lists(st.floats(0.25, 4.0), min_size=2, max_size=4),
    costs=st.lists(st.floats(0.01, MOST_S), min_size=1, max_size=60),
    models=st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=5),
)
def test_the_service_of_backlogged_tenants_stays_within_the_bound(
    policy: QueuePolicy, weights: list[float], costs: list[float], models: list[str]
) -> None:
    counters = ServiceCounters()
    queue: DeviceQueue[RequestClaim] = DeviceQueue(policy, counters)
    arrivals = iter(range(10**6))

    def add(tenant: int) -> None:
        arrival = next(arrivals)
        model = models[arrival % len(models)]
        queue.add(
            RequestClaim(model, arrival, 0.0, 99.0, 0.1, due_s=100.0 - arrival % 7, tenant=str(tenant)), 0.0
        )

    for tenant in range(len(weights)):
        for _ in range(2 * len(models) + 2):
            add(tenant)
    service_s = [0.0] * len(weights)
    for cost_s in costs:
        request = queue.next(["a", "b"], lambda each: None, 0.0)
        assert request is not None
        queue.grant(request)
        tenant = int(request.tenant)
        service_s[tenant] += cost_s / weights[tenant]
        counters.charge(request.tenant, cost_s, weights[tenant])
        add(tenant)
        most_s = max(MOST_S / weight for weight in weights)
        assert max(service_s) - min(service_s) <= 2 * most_s


@given(shares=st.lists(st.floats(0.001, 1000.0), min_size=1, max_size=20))
def test_jains_index_is_one_for_equals_and_less_for_others(shares: list[float]) -> None:
    assert 1 / len(shares) - 1e-9 <= jain_index(shares) <= 1 + 1e-9
    assert abs(jain_index([shares[0]] * len(shares)) - 1) < 1e-9
