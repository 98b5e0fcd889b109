"""The registry on a real SQLite file and on a real PostgreSQL."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Engine, text
from support.databases import ENGINES

from model_registry.database import open_database
from model_registry.records import NewVersion
from model_registry.registry import Registry
from model_registry.tenants import hash_key, is_key
from mooring.errors import ConflictError, InvalidRequestError, NotFoundError
from mooring.policy import DeploymentPolicy

DESCRIPTION = {"max_model_len": 2048, "default_precision": "bf16", "num_parameters": 10}


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        self.now_s += 1.0
        return self.now_s


@pytest.fixture
def database(database_url: str) -> Iterator[Engine]:
    engine = open_database(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def registry(database: Engine) -> Registry:
    return Registry(database, ENGINES, now=Clock())


def version(digest: str = "a" * 64, **changes: object) -> NewVersion:
    values = {"source": "/models/x", "architecture": "llama", "description": DESCRIPTION, "license": "mit"}
    return NewVersion(digest=digest, num_bytes=123, **(values | changes))  # type: ignore[arg-type]


def test_versions_are_numbered_and_the_same_bytes_are_one_version(registry: Registry) -> None:
    first = registry.register_version("m", version())
    again = registry.register_version("m", version(source="elsewhere"))
    second = registry.register_version("m", version("b" * 64))

    assert again == first
    assert (first.number, second.number) == (1, 2)
    assert registry.get_version("m") == second
    assert registry.get_version("m", 1) == first
    assert registry.list_versions("m") == [first, second]
    assert registry.get_model("m").version_numbers == (1, 2)
    assert first.description == DESCRIPTION
    assert first.license == "mit"


def test_a_deleted_number_never_comes_back(registry: Registry) -> None:
    registry.register_version("m", version())
    registry.register_version("m", version("b" * 64))
    registry.delete_version("m", 2)
    assert registry.register_version("m", version("c" * 64)).number == 3


@pytest.mark.parametrize("number", [-(10**30), 0, 99, 2**31, 10**30])
def test_a_version_that_cannot_be_is_not_there(registry: Registry, number: int) -> None:
    registry.register_version("m", version())
    registry.create_deployment("m", "m")
    with pytest.raises(NotFoundError, match="version"):
        registry.update_deployment("m", {"version": number})
    with pytest.raises(NotFoundError, match="version"):
        registry.create_deployment("other", "m", number)


def test_what_a_deployment_uses_cannot_be_deleted(registry: Registry) -> None:
    registry.register_version("m", version())
    registry.create_deployment("d", "m")
    with pytest.raises(ConflictError, match="used by deployment 'd'"):
        registry.delete_version("m", 1)
    with pytest.raises(ConflictError):
        registry.delete_model("m")

    registry.delete_deployment("d")
    assert registry.has_digest("a" * 64)
    registry.delete_model("m")
    assert not registry.has_digest("a" * 64)
    assert registry.list_models() == []
    with pytest.raises(NotFoundError, match="model 'm'"):
        registry.get_model("m")


def test_deployments(registry: Registry) -> None:
    registry.register_version("m", version())
    policy = DeploymentPolicy(pinned=True, kv_cap_bytes=1 << 40, idle_timeout_s=1.5)
    made = registry.create_deployment("d", "m", policy=policy)

    assert made.variant.precision == "bf16"
    assert made.variant.version.number == 1
    assert made.policy == policy
    assert registry.get_deployment("d") == made
    assert registry.list_deployments() == [made]
    with pytest.raises(ConflictError):
        registry.create_deployment("d", "m")


def test_two_deployments_share_a_variant_and_its_packed_artifact(registry: Registry) -> None:
    registry.register_version("m", version())
    one = registry.create_deployment("one", "m")
    registry.set_packed(one.variant.id, "key", 99)
    two = registry.create_deployment("two", "m", precision="bf16")
    other = registry.create_deployment("other", "m", precision="fp32")

    assert (two.variant.packed_key, two.variant.packed_bytes) == ("key", 99)
    assert other.variant.packed_key is None
    assert [v.precision for v in registry.list_variants("m", 1)] == ["bf16", "fp32"]


def test_an_artifact_that_is_renamed_is_renamed_for_all_variants_that_have_it(registry: Registry) -> None:
    for model, key in (("a", "old"), ("b", "old"), ("c", "other")):
        registry.register_version(model, version())
        registry.set_packed(registry.create_deployment(model, model).variant.id, key, 99)
    registry.set_packed(registry.get_deployment("a").variant.id, "new", 99)
    assert [registry.get_deployment(name).variant.packed_key for name in ("a", "b", "c")] == [
        "new",
        "new",
        "other",
    ]


def test_updates_change_only_what_they_name(registry: Registry) -> None:
    registry.register_version("m", version())
    made = registry.create_deployment("d", "m", policy=DeploymentPolicy(priority=3, idle_timeout_s=9.0))
    registry.register_version("m", version("b" * 64))

    changed = registry.update_deployment("d", {"pinned": True, "idle_timeout_s": None, "version": 2})
    assert changed.policy == DeploymentPolicy(priority=3, pinned=True)
    assert changed.variant.version.number == 2
    assert changed.updated_at_s > made.updated_at_s
    assert registry.get_deployment("d") == changed
    assert registry.update_deployment("d", {"precision": "fp32"}).variant.precision == "fp32"


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"colour": "red"}, "colour"),
        ({"pinned": "yes"}, "pinned"),
        ({"priority": True}, "priority"),
        ({"priority": 2**31}, "priority"),
        ({"kv_cap_bytes": -1}, "kv_cap_bytes"),
        ({"kv_cap_bytes": 5, "kv_guarantee_bytes": 6}, "kv_cap_bytes"),
        ({"max_model_len": 2049}, "max_model_len"),
        ({"idle_timeout_s": float("nan")}, "idle_timeout_s"),
        ({"min_replicas": 2}, "min_replicas"),
        ({"version": "1"}, "version"),
        ({"precision": "int3"}, "precision"),
    ],
)
def test_a_bad_setting_is_named_and_nothing_changes(
    registry: Registry, changes: dict[str, object], param: str
) -> None:
    registry.register_version("m", version())
    made = registry.create_deployment("d", "m")
    with pytest.raises(InvalidRequestError) as caught:
        registry.update_deployment("d", changes)
    assert caught.value.param == param
    assert registry.get_deployment("d") == made


def test_what_is_not_there_is_named(registry: Registry) -> None:
    with pytest.raises(NotFoundError, match="model 'm'"):
        registry.create_deployment("d", "m")
    registry.register_version("m", version())
    with pytest.raises(NotFoundError, match="version 7"):
        registry.create_deployment("d", "m", version=7)
    with pytest.raises(InvalidRequestError) as caught:
        registry.create_deployment("d", "m", engine="abacus")
    assert caught.value.param == "engine"
    with pytest.raises(InvalidRequestError):
        registry.create_deployment("../d", "m")


def test_keys_are_shown_once_and_checked_by_hash(registry: Registry, database: Engine) -> None:
    tenant = registry.create_tenant("acme")
    key, record = registry.create_key("acme", "laptop")

    assert re.fullmatch(r"mk-[A-Za-z0-9_-]{43}", key)
    assert is_key(key)
    assert not any(
        is_key(text)
        for text in (key[:-1], key + "x", key + "\n", key.upper(), key[3:], "mk-" + "\ud800" * 43)
    )
    assert record.prefix == key[:8]
    assert registry.authenticate(hash_key(key)) == tenant
    assert registry.authenticate(hash_key(key[:-1])) is None
    with database.connect() as connection:
        (row,) = connection.execute(text("SELECT * FROM api_keys"))
    assert key not in str(row)


def test_a_revoked_key_is_no_key(registry: Registry) -> None:
    registry.create_tenant("acme")
    first, record = registry.create_key("acme")
    second, _ = registry.create_key("acme")
    revoked = registry.revoke_key("acme", record.prefix)

    assert registry.authenticate(hash_key(first)) is None
    assert registry.authenticate(hash_key(second)) is not None
    assert registry.revoke_key("acme", record.prefix) == revoked
    assert [key.revoked_at_s for key in registry.list_keys("acme")] == [revoked.revoked_at_s, None]
    with pytest.raises(NotFoundError):
        registry.revoke_key("acme", "mk-nokey")


def test_no_tenant_is_called_as_those_without_a_key(registry: Registry) -> None:
    with pytest.raises(InvalidRequestError, match="no key"):
        registry.create_tenant("anonymous")
    assert registry.list_tenants() == []


def test_a_tenant_with_working_keys_stays(registry: Registry) -> None:
    registry.create_tenant("acme")
    with pytest.raises(ConflictError):
        registry.create_tenant("acme")
    _, key = registry.create_key("acme")
    with pytest.raises(ConflictError, match="revoke"):
        registry.delete_tenant("acme")
    registry.revoke_key("acme", key.prefix)
    registry.delete_tenant("acme")
    assert registry.list_tenants() == []


def test_writers_on_many_threads_lose_nothing(registry: Registry) -> None:
    errors: list[Exception] = []

    def write(writer: int) -> None:
        try:
            for index in range(10):
                registry.register_version("m", version(f"{writer}-{index}"))
                registry.list_models()
        except Exception as error:  # handed to the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert errors == []
    assert registry.get_model("m").version_numbers == tuple(range(1, 41))


def test_what_was_written_is_there_after_reopening(database_url: str) -> None:
    with closing_engine(database_url) as engine:
        written = Registry(engine, ENGINES).register_version("m", version())
    with closing_engine(database_url) as engine:
        assert Registry(engine, ENGINES).get_version("m") == written


@pytest.mark.parametrize("name", ["nul\x00", "half\ud800", "x" * 1000])
def test_a_name_that_no_database_can_hold_is_the_callers_to_mend(registry: Registry, name: str) -> None:
    for ask in (registry.get_model, registry.get_deployment, registry.list_keys):
        with pytest.raises((NotFoundError, InvalidRequestError)):
            ask(name)
    with pytest.raises(InvalidRequestError):
        registry.create_tenant(name)
    assert registry.list_tenants() == []


def test_a_reader_sees_one_state_while_a_writer_changes_it(registry: Registry) -> None:
    registry.register_version("m", version())
    torn: list[tuple[int, ...]] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            numbers = registry.get_model("m").version_numbers
            if numbers != tuple(range(numbers[0], numbers[-1] + 1)):
                torn.append(numbers)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for index in range(20):
            registry.register_version("m", version(f"{index:064}"))
    finally:
        done.set()
        reader.join(timeout=30)
    assert torn == []


@contextmanager
def closing_engine(url: str) -> Iterator[Engine]:
    engine = open_database(url)
    yield engine
    engine.dispose()
