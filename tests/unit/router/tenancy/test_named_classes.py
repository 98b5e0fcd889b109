"""Which SLO class a request may name, and whose it is then."""

from __future__ import annotations

import pytest

from model_registry.records import TenantRecord
from mooring.errors import PermissionDeniedError
from mooring.slo import SLOClass
from router.tenancy.tenant import ANONYMOUS, tenant_from

GOLD, CHAT, NIGHTLY = (SLOClass(name, 1.0, 0.1) for name in ("gold", "chat", "nightly"))
ACME = tenant_from(TenantRecord(7, "acme", 1.5, GOLD, 2.0, (CHAT, NIGHTLY)))
PLAIN = tenant_from(TenantRecord(8, "plain", 1.5))


def test_a_request_is_served_in_the_class_that_it_names() -> None:
    for name, slo_class in (("chat", CHAT), ("nightly", NIGHTLY), ("best-effort", None)):
        party = ACME.in_class(name, param="x")
        assert (party.slo_class, party.weight) == (slo_class, 2.0)
        assert (party, hash(party)) == (ACME, hash(ACME)), "what it has in flight counts together"


@pytest.mark.parametrize("name", [None, "", "auto", "default", "gold"])
def test_the_tenants_own_class_needs_no_name(name: str | None) -> None:
    assert ACME.in_class(name, param="x").slo_class == GOLD


def test_best_effort_remembers_the_class_that_it_is_instead_of() -> None:
    assert ACME.in_class("best-effort", param="x").given_up == GOLD
    assert ACME.in_class("chat", param="x").given_up is None
    for tenant in (PLAIN, ANONYMOUS):
        party = tenant.in_class("best-effort", param="x")
        assert (party.slo_class, party.given_up) == (None, None)


@pytest.mark.parametrize(
    ("tenant", "usable"),
    [
        (ACME, "'gold', 'chat', 'nightly', 'best-effort'"),
        (PLAIN, "'best-effort'"),
        (ANONYMOUS, "'best-effort'"),
    ],
    ids=lambda each: getattr(each, "name", ""),
)
def test_other_names_are_refused_with_those_that_may_be_used(tenant: object, usable: str) -> None:
    assert isinstance(tenant, type(ACME))
    with pytest.raises(PermissionDeniedError) as caught:
        tenant.in_class("platinum", param="service_tier")
    assert caught.value.message == f"Your requests may use the SLO classes {usable}, and not 'platinum'."
    assert caught.value.param == "service_tier"


def test_one_may_not_name_another_ones_class() -> None:
    with pytest.raises(PermissionDeniedError):
        PLAIN.in_class("gold", param="x")
