"""SLO classes and tenants through any sequence of changes, against two dictionaries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.databases import ENGINES

from model_registry.database import open_database
from model_registry.registry import Registry
from mooring.errors import ConflictError, InvalidRequestError, NotFoundError
from mooring.slo import SLOClass

CLASSES, TENANTS = ("gold", "org/batch"), ("acme", "globex")
SECONDS = st.floats(-1.0, 10.0) | st.just(float("inf"))
CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "ttft_target_s": SECONDS | st.none(),
        "tpot_target_s": SECONDS | st.none(),
        "goal": st.floats(-0.5, 1.5) | st.none(),
        "priority": st.integers(-(2**32), 2**32) | st.none(),
        "on_miss": st.sampled_from(("batch", "refuse", "wait", None)),
    },
)
NAMES = st.sampled_from(CLASSES)
ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("create"), NAMES),
        st.tuples(st.just("change"), NAMES, CHANGES),
        st.tuples(st.just("delete"), NAMES),
        st.tuples(st.just("give"), st.sampled_from(TENANTS), st.none() | NAMES),
        st.tuples(st.just("allow"), st.sampled_from(TENANTS), st.lists(NAMES)),
    ),
    max_size=12,
)
DEFAULTS = {"goal": 0.95, "priority": 0, "on_miss": "batch"}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    engine = open_database(f"sqlite:///{tmp_path_factory.mktemp('registry')}/registry.db")
    made = Registry(engine, ENGINES)
    for tenant in TENANTS:
        made.create_tenant(tenant)
    yield made
    engine.dispose()


@settings(max_examples=40)
@given(acts=ACTS)
def test_the_registry_holds_what_was_promised_to_whom(
    registry: Registry, acts: list[tuple[Any, ...]]
) -> None:
    for tenant in TENANTS:
        registry.change_tenant(tenant, {"slo_class": None, "allowed_slo_classes": None})
    for record in registry.list_slo_classes():
        registry.delete_slo_class(record.slo_class.name)
    classes: dict[str, SLOClass] = {}
    has: dict[str, str | None] = dict.fromkeys(TENANTS)
    may: dict[str, set[str]] = {tenant: set() for tenant in TENANTS}
    for act in acts:
        if (refusal := expected(act, classes, has, may)) is None:
            carry_out(registry, act)
            follow(act, classes, has, may)
        else:
            with pytest.raises(refusal):
                carry_out(registry, act)
        listed = registry.list_slo_classes()
        assert {each.slo_class.name: each.slo_class for each in listed} == classes
        for each in listed:
            assert each.tenants == tuple(t for t in TENANTS if has[t] == each.slo_class.name)
        for tenant in registry.list_tenants():
            assert tenant.allowed_slo_classes == tuple(classes[name] for name in sorted(may[tenant.name]))
        assert {each.name: each.slo_class for each in registry.list_tenants()} == {
            tenant: None if name is None else classes[name] for tenant, name in has.items()
        }


def carry_out(registry: Registry, act: tuple[Any, ...]) -> None:
    match act:
        case ("create", name):
            registry.create_slo_class(SLOClass(name, 1.0, 0.1))
        case ("change", name, changes):
            registry.change_slo_class(name, changes)
        case ("delete", name):
            registry.delete_slo_class(name)
        case ("give", tenant, name):
            registry.change_tenant(tenant, {"slo_class": name})
        case ("allow", tenant, names):
            registry.change_tenant(tenant, {"allowed_slo_classes": names})


def expected(
    act: tuple[Any, ...],
    classes: dict[str, SLOClass],
    has: dict[str, str | None],
    may: dict[str, set[str]],
) -> type[Exception] | None:
    """The error that an act should end with."""
    if act[0] == "allow":
        return None if set(act[2]) <= classes.keys() else NotFoundError
    kind, name = act[0], act[2] if act[0] == "give" else act[1]
    if kind == "create":
        return ConflictError if name in classes else None
    if name is not None and name not in classes:
        return NotFoundError
    if kind == "delete":
        return ConflictError if name in {*has.values(), *set().union(*may.values())} else None
    return InvalidRequestError if kind == "change" and not may_be(act[2]) else None


def may_be(changes: dict[str, Any]) -> bool:
    """Whether a class may have these values."""
    bounds = {"goal": (5e-324, 1.0), "priority": (-(2**31) + 1, 2**31 - 1)}
    for name, value in changes.items():
        if name == "on_miss":
            if value not in ("batch", "refuse", None):
                return False
            continue
        low, high = bounds.get(name, (5e-324, 1e308))
        if not (name in DEFAULTS if value is None else low <= value <= high):
            return False
    return True


def follow(
    act: tuple[Any, ...],
    classes: dict[str, SLOClass],
    has: dict[str, str | None],
    may: dict[str, set[str]],
) -> None:
    match act:
        case ("create", name):
            classes[name] = SLOClass(name, 1.0, 0.1)
        case ("change", name, changes):
            values = {field: DEFAULTS[field] if value is None else value for field, value in changes.items()}
            classes[name] = replace(classes[name], **values)
        case ("delete", name):
            del classes[name]
        case ("give", tenant, name):
            has[tenant] = name
        case ("allow", tenant, names):
            may[tenant] = set(names)
