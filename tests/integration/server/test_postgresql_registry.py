"""What only a registry on PostgreSQL can show: its password, its restarts, servers that share it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.databases import ENGINES
from support.postgresql import PASSWORD, PostgresCluster, postgres_cluster
from support.running_server import RunningServer
from support.small_checkpoint import NULL_ENVIRONMENT, write_checkpoint

from model_registry.database import open_database
from model_registry.records import NewVersion
from model_registry.registry import Registry
from model_registry.tenants import hash_key
from mooring.errors import ConfigurationError, RegistryUnavailableError

pytestmark = pytest.mark.integration

VERSION = NewVersion(
    digest="a" * 64,
    source="/models/x",
    license=None,
    architecture="llama",
    description={"max_model_len": 2048, "default_precision": "bf16"},
    num_bytes=123,
)


@pytest.fixture
def restartable() -> Iterator[PostgresCluster]:
    """A cluster that a test may stop."""
    with postgres_cluster() as cluster:
        yield cluster


def test_the_password_comes_from_its_file_and_is_never_shown(
    postgresql: PostgresCluster, tmp_path: Path
) -> None:
    url = postgresql.url(postgresql.new_database(), password=None)
    password_file = tmp_path / "password"
    password_file.write_text(PASSWORD + "\n")
    engine = open_database(url, password_file)
    assert engine.dialect.driver == "psycopg"
    engine.dispose()

    password_file.write_text("wr0ng")
    with pytest.raises(ConfigurationError, match=r"postgresql\+psycopg://mooring:\*\*\*@") as caught:
        open_database(url, password_file)
    assert "wr0ng" not in caught.value.message
    with pytest.raises(ConfigurationError, match="database_password_file"):
        open_database(url, tmp_path / "nothing")


def test_servers_that_start_together_migrate_once(postgresql: PostgresCluster) -> None:
    url = postgresql.url(postgresql.new_database())
    errors: list[Exception] = []

    def start() -> None:
        try:
            open_database(url).dispose()
        except Exception as error:  # handed to the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert errors == []


def test_two_servers_that_share_a_registry_number_their_versions_in_one_row(
    postgresql: PostgresCluster,
) -> None:
    url = postgresql.url(postgresql.new_database())
    engines = [open_database(url) for _ in range(2)]
    first, second = (Registry(engine, ENGINES) for engine in engines)
    assert first.register_version("m", VERSION) == second.register_version("m", VERSION)
    first.create_tenant("acme")
    key, _ = second.create_key("acme")
    tenant = first.authenticate(hash_key(key))
    assert tenant is not None
    assert tenant.name == "acme"
    for engine in engines:
        engine.dispose()


def test_a_database_that_is_away_is_said_and_found_again(restartable: PostgresCluster) -> None:
    engine = open_database(restartable.url(restartable.new_database()))
    registry = Registry(engine, ENGINES)
    registry.create_tenant("acme")
    restartable.stop()
    with pytest.raises(RegistryUnavailableError, match="try again"):
        registry.list_tenants()
    with pytest.raises(RegistryUnavailableError):
        registry.create_tenant("globex")
    restartable.start()
    assert [tenant.name for tenant in registry.list_tenants()] == ["acme"]
    engine.dispose()


@pytest.mark.slow
def test_a_server_on_postgresql(restartable: PostgresCluster, tmp_path: Path) -> None:
    password_file = tmp_path / "password"
    password_file.write_text(PASSWORD)
    environment = NULL_ENVIRONMENT | {
        "MOORING_DATABASE_URL": restartable.url(restartable.new_database(), password=None),
        "MOORING_DATABASE_PASSWORD_FILE": str(password_file),
    }
    models = {"a": write_checkpoint(tmp_path / "a")}
    flags = ["--engine", "null", "--memory-budget", "64MiB"]
    with RunningServer(tmp_path / "data", models, flags, environment) as server:
        assert server.admin("POST", "/tenants", {"name": "acme"}).status_code == 201
        body = {"model": "a", "prompt": "hello", "max_tokens": 2}
        restartable.stop()
        away = server.admin("GET", "/tenants")
        assert (away.status_code, away.json()["error"]["code"]) == (503, "registry_unavailable")
        served = server.client.post(f"{server.http_url}/v1/completions", json=body)
        assert served.status_code == 200, "what is deployed is served without the database"
        restartable.start()
        assert server.admin("GET", "/tenants").json()
    assert not list((tmp_path / "data").glob("registry.sqlite3*"))
    with RunningServer(tmp_path / "data", {}, flags, environment) as server:
        assert [model["name"] for model in server.admin("GET", "/models").json()] == ["a"]
