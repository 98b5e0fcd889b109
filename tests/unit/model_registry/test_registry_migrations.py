"""The migrations give exactly the schema of the models, up and down."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text

from model_registry.database import migrate, open_database
from model_registry.schema import Base
from mooring.errors import ConfigurationError


def test_migrated_schema_equals_the_models(database_url: str) -> None:
    engine = open_database(database_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_down_and_up_again(database_url: str) -> None:
    engine = open_database(database_url)
    tables = set(inspect(engine).get_table_names())
    assert tables == set(Base.metadata.tables) | {"alembic_version"}
    migrate(engine, "base")
    assert inspect(engine).get_table_names() == ["alembic_version"]
    migrate(engine)
    assert set(inspect(engine).get_table_names()) == tables


def test_sqlite_is_opened_for_durability(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path}/registry.db")
    with engine.connect() as connection:
        pragmas = {
            name: connection.execute(text(f"PRAGMA {name}")).scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_a_database_of_a_newer_build_is_refused(database_url: str) -> None:
    engine = open_database(database_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(ConfigurationError, match="newer Mooring"):
        open_database(database_url)


@pytest.mark.parametrize("url", ["nonsense", "nosuchdb:///x", "sqlite:////nonexistent/folder/registry.db"])
def test_a_bad_url_is_the_operators_to_mend(url: str) -> None:
    with pytest.raises(ConfigurationError):
        open_database(url)
