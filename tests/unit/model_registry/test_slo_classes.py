"""SLO classes and whose they are, in the registry on a real SQLite file and on a real PostgreSQL."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine, text
from support.databases import ENGINES

from model_registry.database import migrate, open_database
from model_registry.records import SLOClassRecord
from model_registry.registry import Registry
from model_registry.schema import SLOClassRow
from model_registry.tenants import hash_key
from mooring.declared import declared
from mooring.errors import ConflictError, InvalidRequestError, NotFoundError
from mooring.slo import SLOClass

GOLD = SLOClass("gold", ttft_target_s=0.5, tpot_target_s=0.05, goal=0.99, priority=10)


@pytest.fixture
def database(database_url: str) -> Iterator[Engine]:
    engine = open_database(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def registry(database: Engine) -> Registry:
    return Registry(database, ENGINES)


def test_classes_are_made_listed_changed_and_removed(registry: Registry) -> None:
    assert registry.create_slo_class(GOLD) == SLOClassRecord(GOLD, ())
    batch = SLOClass("team/batch", 60.0, 1.0)
    registry.create_slo_class(batch)
    assert [each.slo_class for each in registry.list_slo_classes()] == [GOLD, batch]
    with pytest.raises(ConflictError) as caught:
        registry.create_slo_class(replace(GOLD, goal=0.5))
    assert caught.value.param == "name"
    changed = registry.change_slo_class("gold", {"goal": 1.0, "priority": None})
    assert changed.slo_class == replace(GOLD, goal=1.0, priority=0)
    registry.delete_slo_class("team/batch")
    assert registry.list_slo_classes() == [changed]
    for ask in (
        lambda: registry.delete_slo_class("team/batch"),
        lambda: registry.change_slo_class("team/batch", {}),
    ):
        with pytest.raises(NotFoundError, match="team/batch"):
            ask()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("name", bad) for bad in ("", "a b", "best-effort", "auto", "default", "x" * 129)),
        *(
            (name, bad)
            for name in ("ttft_target_s", "tpot_target_s")
            for bad in (0.0, -1.0, math.inf, "1", True)
        ),
        *(("goal", bad) for bad in (0.0, 1.01, -0.5, math.nan)),
        *(("priority", bad) for bad in (0.5, 2**31, -(2**31), True)),
        *(("on_miss", bad) for bad in ("", "wait", 1, True)),
    ],
)
def test_what_is_no_promise_is_refused_by_the_name_of_its_field(
    registry: Registry, field: str, value: Any
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        registry.create_slo_class(replace(GOLD, **{field: value}))
    assert caught.value.param == field
    if field != "name":
        registry.create_slo_class(GOLD)
        with pytest.raises(InvalidRequestError) as caught:
            registry.change_slo_class("gold", {field: value})
        assert caught.value.param == field
        assert registry.list_slo_classes() == [SLOClassRecord(GOLD, ())]


def test_a_field_without_a_default_cannot_be_put_back_to_it(registry: Registry) -> None:
    registry.create_slo_class(GOLD)
    for name in ("ttft_target_s", "tpot_target_s"):
        with pytest.raises(InvalidRequestError, match="must be a number, more than 0") as caught:
            registry.change_slo_class("gold", {name: None})
        assert caught.value.param == name


def test_a_tenants_class_is_found_with_its_key(registry: Registry) -> None:
    registry.create_slo_class(GOLD)
    assert registry.create_tenant("acme").slo_class is None
    key, _ = registry.create_key("acme")
    assert registry.change_tenant("acme", {"slo_class": "gold"}).slo_class == GOLD
    found = registry.authenticate(hash_key(key))
    assert found is not None
    assert found.slo_class == GOLD
    registry.change_slo_class("gold", {"goal": 0.5})
    assert [each.slo_class for each in registry.list_tenants()] == [replace(GOLD, goal=0.5)]
    assert registry.change_tenant("acme", {"slo_class": None}).slo_class is None
    for tenant, slo_class in (("nobody", "gold"), ("nobody", None), ("acme", "silver")):
        with pytest.raises(NotFoundError):
            registry.change_tenant(tenant, {"slo_class": slo_class})


@pytest.mark.parametrize("weight", [0, -1.0, 0.0009, 1001, math.inf, math.nan, "1", True])
def test_a_weight_is_a_number_within_bounds(registry: Registry, weight: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        registry.create_tenant("acme", weight)
    assert caught.value.param == "weight"
    assert registry.create_tenant("acme").weight == 1.0
    with pytest.raises(InvalidRequestError):
        registry.change_tenant("acme", {"slo_class": None, "weight": weight})
    assert registry.change_tenant("acme", {"weight": 2}).weight == 2.0
    assert registry.change_tenant("acme", {}).weight == 2.0
    assert registry.change_tenant("acme", {"weight": None}).weight == 1.0


def test_a_class_in_use_stays_and_the_refusal_names_its_tenants(registry: Registry) -> None:
    registry.create_slo_class(GOLD)
    names = [f"t{number:02}" for number in range(12)]
    for name in names:
        registry.create_tenant(name)
    registry.change_tenant("t00", {"slo_class": "gold"})
    with pytest.raises(ConflictError, match="tenants 't00' have or may use"):
        registry.delete_slo_class("gold")
    for name in names:
        registry.change_tenant(name, {"slo_class": "gold"})
    assert registry.list_slo_classes() == [SLOClassRecord(GOLD, tuple(names))]
    with pytest.raises(ConflictError, match="'t09' and 2 more"):
        registry.delete_slo_class("gold")
    for name in names:
        registry.change_tenant(name, {"slo_class": None})
    registry.delete_slo_class("gold")
    assert registry.list_slo_classes() == []
    assert len(registry.list_tenants()) == 12


def test_classes_that_a_tenant_may_use_are_found_with_its_key_and_stay(registry: Registry) -> None:
    batch = SLOClass("batch", 60.0, 1.0)
    for each in (GOLD, batch):
        registry.create_slo_class(each)
    registry.create_tenant("acme")
    key, _ = registry.create_key("acme")
    changed = registry.change_tenant("acme", {"allowed_slo_classes": ["gold", "batch", "gold"]})
    assert (changed.slo_class, changed.allowed_slo_classes) == (None, (batch, GOLD))
    assert registry.authenticate(hash_key(key)) == changed
    assert registry.list_tenants() == [changed]
    assert registry.list_slo_classes() == [SLOClassRecord(batch, ()), SLOClassRecord(GOLD, ())]
    for name in ("gold", "batch"):
        with pytest.raises(ConflictError, match="tenants 'acme' have or may use"):
            registry.delete_slo_class(name)
    with pytest.raises(NotFoundError, match="silver"):
        registry.change_tenant("acme", {"allowed_slo_classes": ["silver"], "weight": 2.0})
    assert registry.list_tenants() == [changed]
    registry.change_tenant("acme", {"allowed_slo_classes": ["gold"]})
    registry.delete_slo_class("batch")
    assert registry.change_tenant("acme", {"allowed_slo_classes": None}).allowed_slo_classes == ()
    registry.delete_slo_class("gold")


def test_a_tenant_that_may_use_a_class_can_be_removed(registry: Registry) -> None:
    registry.create_slo_class(GOLD)
    registry.create_tenant("acme")
    registry.change_tenant("acme", {"allowed_slo_classes": ["gold"]})
    registry.delete_tenant("acme")
    registry.delete_slo_class("gold")


def test_a_row_has_every_field_that_a_class_declares() -> None:
    assert set(SLOClassRow.__table__.columns.keys()) == {"id", *declared(SLOClass)}


def test_classes_of_before_they_said_what_becomes_of_misses_serve_them(database_url: str) -> None:
    engine = open_database(database_url)
    migrate(engine, "base")
    migrate(engine, "0004")
    with engine.begin() as connection:
        columns = "(name, ttft_target_s, tpot_target_s, goal, priority)"
        connection.execute(text(f"INSERT INTO slo_classes {columns} VALUES ('gold', 0.5, 0.05, 0.99, 10)"))
        connection.execute(
            text(
                "INSERT INTO tenants (name, created_at_s, slo_class_id) SELECT 'acme', 1.5, id FROM slo_classes"
            )
        )
    migrate(engine)
    registry = Registry(engine, ENGINES)
    assert registry.list_slo_classes() == [SLOClassRecord(GOLD, ("acme",))]
    assert registry.change_slo_class("gold", {"on_miss": "refuse"}).slo_class.on_miss == "refuse"
    migrate(engine, "base")  # while a tenant has it
    engine.dispose()


def test_tenants_of_before_there_were_classes_keep_their_keys(database_url: str) -> None:
    engine = open_database(database_url)
    migrate(engine, "base")
    migrate(engine, "0003")
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO tenants (id, name, created_at_s) VALUES (7, 'acme', 1.5)"))
        connection.execute(
            text(
                "INSERT INTO api_keys (tenant_id, name, prefix, key_hash, created_at_s) "
                f"VALUES (7, '', 'mk-abcde', '{'a' * 64}', 2.5)"
            )
        )
    migrate(engine)
    registry = Registry(engine, ENGINES)
    found = registry.authenticate("a" * 64)
    assert found is not None
    assert (found.id, found.name, found.slo_class, found.weight) == (7, "acme", None, 1.0)
    registry.create_slo_class(GOLD)
    registry.change_tenant("acme", {"slo_class": "gold"})
    migrate(engine, "base")  # with keys and classes in use
    migrate(engine)
    assert registry.list_tenants() == []
    engine.dispose()
