"""What tenants have in flight, counted and bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mooring.errors import MooringError, OverloadedError, RateLimitError
from router.request.bounds import RouterConfig
from router.tenancy.in_flight import Held, InFlight
from router.tenancy.tenant import ANONYMOUS, Tenant

A, B = Tenant("a", b"1"), Tenant("b", b"2")
CONFIG = RouterConfig(
    max_total_body_bytes=100, max_tenant_body_bytes=60, max_tenant_requests=2, max_tenant_choices=5
)


@pytest.mark.parametrize(
    ("amounts", "setting"),
    [
        ({"body_bytes": 61}, "max_tenant_body_bytes"),
        ({"requests": 3}, "max_tenant_requests"),
        ({"choices": 6}, "max_tenant_choices"),
    ],
)
def test_a_tenant_is_told_which_limit_it_met(amounts: dict[str, int], setting: str) -> None:
    in_flight = InFlight(CONFIG)
    with pytest.raises(RateLimitError, match=setting) as refused:
        in_flight.take(A, **amounts)
    assert refused.value.retry_after_s == 1
    assert refused.value.code == f"{setting.removeprefix('max_')}_in_flight"
    in_flight.take(A, body_bytes=60, requests=2, choices=5)
    in_flight.take(B, requests=2, choices=5)


def test_all_tenants_share_the_bytes() -> None:
    in_flight = InFlight(CONFIG)
    with in_flight.take(A, body_bytes=60), pytest.raises(OverloadedError, match="max_total_body_bytes"):
        in_flight.take(B, body_bytes=41)
    in_flight.take(B, body_bytes=41)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([A, B, ANONYMOUS]),
            st.integers(0, 70),
            st.integers(0, 3),
            st.integers(0, 6),
            st.booleans(),
        )
    )
)
def test_nothing_is_lost_and_no_bound_is_passed(
    takes: list[tuple[Tenant, int, int, int, bool]],
) -> None:
    in_flight = InFlight(CONFIG)
    held: list[tuple[Held, int]] = []
    for tenant, body_bytes, requests, choices, releases in takes:
        try:
            taken = in_flight.take(tenant, body_bytes=body_bytes, requests=requests, choices=choices)
            held.append((taken, body_bytes))
        except MooringError:
            pass
        if releases and held:
            held.pop(0)[0].release()
        assert in_flight.body_bytes == sum(num_bytes for _, num_bytes in held) <= 100
    for each, _ in held:
        each.release()
        each.release()
    assert in_flight.body_bytes == 0
    in_flight.take(A, body_bytes=60, requests=2, choices=5)
