"""Opens the registry's database and brings its schema up to date."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from mooring.errors import ConfigurationError

__all__ = ["READ_ONLY", "migrate", "open_database"]

READ_ONLY = "mooring_read_only"  # execution option of connections that will not write
BUSY_TIMEOUT_MS = 10_000
SQLITE_PRAGMAS = (
    "PRAGMA journal_mode=WAL",  # readers and the one writer do not wait for each other
    "PRAGMA synchronous=FULL",  # a commit survives the power going; NORMAL could lose the last ones
    "PRAGMA foreign_keys=ON",
    f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}",
)


def open_database(url: str) -> Engine:
    """Connects to the database and migrates it to this build's schema.

    Args:
        url: SQLAlchemy's, ``sqlite:////data/registry.db`` for instance.

    Raises:
        ConfigurationError: the URL is wrong, the database cannot be reached, or a newer Mooring made it.
    """
    try:
        engine = create_engine(url)
    except (ArgumentError, ModuleNotFoundError) as error:
        raise ConfigurationError(f"the registry's database URL is not usable: {error}") from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    try:
        migrate(engine)
    except (CommandError, DBAPIError) as error:
        engine.dispose()
        shown = make_url(url).render_as_string(hide_password=True)
        raise ConfigurationError(
            f"the registry's database {shown} cannot be opened or was made by a newer Mooring: {error}"
        ) from error
    return engine


def migrate(engine: Engine, revision: str = "head") -> None:
    """Upgrades or downgrades the schema, in one transaction, to a revision (``"base"`` is empty)."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        (command.downgrade if revision == "base" else command.upgrade)(config, revision)


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    # The driver would begin transactions by itself, late and never for DDL; ours begin in _begin_sqlite.
    connection.isolation_level = None
    for pragma in SQLITE_PRAGMAS:
        connection.execute(pragma)


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes the lock before it reads, so what it has read stays true until it commits.
    read_only = connection.get_execution_options().get(READ_ONLY, False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
