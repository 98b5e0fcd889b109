"""Long lists of the registry in pages: nothing twice, nothing left out, and as few queries for many as for few."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, event, insert
from support.databases import ENGINES

from model_registry.database import open_database
from model_registry.paging import Page
from model_registry.records import NewVersion
from model_registry.registry import Registry
from model_registry.schema import KeyRow, TenantRow
from mooring.errors import InvalidRequestError

DESCRIPTION = {"max_model_len": 2048, "default_precision": "bf16", "num_parameters": 10}


@pytest.fixture
def database(database_url: str) -> Iterator[Engine]:
    engine = open_database(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def registry(database: Engine) -> Registry:
    return Registry(database, ENGINES)


@contextmanager
def counting(database: Engine) -> Iterator[list[str]]:
    """The statements that the database is sent meanwhile."""
    sent: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    event.listen(database, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(database, "before_cursor_execute", note)


def add_tenants(database: Engine, num_tenants: int, num_keys: int) -> None:
    """Tenants, each with so many keys, of which every third is revoked."""
    with database.begin() as connection:
        start = len(connection.execute(TenantRow.__table__.select()).all())
        numbers = range(start, start + num_tenants)
        tenants = [{"name": f"t{number:05}", "weight": 1.0, "created_at_s": 1.0} for number in numbers]
        connection.execute(insert(TenantRow), tenants)
        rows = connection.execute(TenantRow.__table__.select()).all()[start:]
        keys = [
            {
                "tenant_id": row.id,
                "name": f"key {number}",
                "prefix": f"mk-{number:05}",
                "key_hash": f"{row.id}-{number}",
                "created_at_s": 1.0,
                "revoked_at_s": 2.0 if number % 3 == 0 else None,
            }
            for row in rows
            for number in range(num_keys)
        ]
        connection.execute(insert(KeyRow), keys)


def walk(
    list_page: Callable[[Page], Sequence[Any]], cursor_of: Callable[[Any], str], page: Page
) -> list[Any]:
    """All pages from this one on, put together."""
    found: list[Any] = []
    while entries := list_page(page):
        assert len(entries) <= (page.limit or len(entries))
        found += entries
        page = page._replace(after=cursor_of(entries[-1]))
    return found


def test_as_many_queries_for_thousands_of_tenants_and_keys_as_for_few(database: Engine) -> None:
    registry = Registry(database, ENGINES)
    add_tenants(database, 3, 4)

    def ask() -> list[int]:
        with counting(database) as sent:
            tenants = registry.list_tenants(Page(100))
            counted = registry.count_valid_keys([each.id for each in tenants])
            num_listed = len(sent)
            keys = registry.list_keys("t00001", Page(100))
            registry.list_models(Page(100))
            registry.list_deployments(Page(100))
        assert [counted[each.id] for each in tenants[3:]] == [66] * len(tenants[3:])
        assert keys
        return [num_listed, len(sent)]

    few = ask()
    add_tenants(database, 100, 100)
    assert ask() == few


def test_counting_keys_leaves_out_those_that_are_revoked(registry: Registry, database: Engine) -> None:
    assert not registry.has_valid_key()
    add_tenants(database, 2, 1)
    ids = [each.id for each in registry.list_tenants()]
    assert registry.count_valid_keys(ids) == {}
    assert not registry.has_valid_key()
    _, made = registry.create_key("t00001")
    assert registry.count_valid_keys(ids) == {ids[1]: 1}
    assert registry.count_valid_keys(ids[:1]) == registry.count_valid_keys([]) == {}
    assert registry.has_valid_key()
    registry.revoke_key("t00001", made.prefix)
    registry.delete_tenant("t00001")
    assert [each.name for each in registry.list_tenants()] == ["t00000"]


def test_keys_are_found_by_name_and_by_what_is_shown_of_them(registry: Registry, database: Engine) -> None:
    add_tenants(database, 2, 12)
    names = [each.name for each in registry.list_keys("t00001", Page(search="key 1"))]
    assert names == ["key 1", "key 10", "key 11"]
    assert [each.name for each in registry.list_keys("t00001", Page(search="mk-00007"))] == ["key 7"]
    assert registry.list_keys("t00001", Page(search="KEY")) == []
    for after in ("x", "-1", "9" * 30, "٣"):
        with pytest.raises(InvalidRequestError, match="id"):
            registry.list_keys("t00001", Page(after=after))


def test_models_and_deployments_come_in_pages(registry: Registry) -> None:
    for number, name in enumerate(("b", "a/x", "a_x", "a%")[:3]):
        new = NewVersion(f"{number}" * 64, 1, "/m", "llama", DESCRIPTION)
        registry.register_version(name, new)
        registry.create_deployment(f"{name}-1", name)
        registry.create_deployment(f"{name}-2", name)
    models = registry.list_models()
    assert walk(lambda page: registry.list_models(page), lambda each: each.name, Page(2)) == models
    deployments = registry.list_deployments()
    assert walk(lambda page: registry.list_deployments(page), lambda each: each.name, Page(4)) == deployments
    assert [each.name for each in registry.list_models(Page(search="a_"))] == ["a_x"]
    assert registry.deployments_of_models(["b", "a/x", "nothing"]) == {
        "b": ["b-1", "b-2"],
        "a/x": ["a/x-1", "a/x-2"],
    }


NAMES = st.text("abAB._-", min_size=1, max_size=5).filter(lambda name: name[0].isalpha())


@settings(max_examples=40, deadline=None)
@given(st.sets(NAMES, max_size=12), st.integers(1, 5), st.text("abAB._-", max_size=2))
def test_pages_together_are_the_list(names: set[str], limit: int, search: str) -> None:
    database = open_database("sqlite://")
    registry = Registry(database, ENGINES)
    for name in names:
        registry.create_tenant(name)
    expected = [each for each in registry.list_tenants() if each.name.startswith(search)]
    assert walk(registry.list_tenants, lambda each: each.name, Page(limit, search=search)) == expected
    database.dispose()
