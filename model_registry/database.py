"""Opens the registry's database and brings its schema up to date."""

from __future__ import annotations

import importlib.util
import sqlite3
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from mooring.errors import ConfigurationError

__all__ = ["READ_ONLY", "migrate", "open_database"]

READ_ONLY = "mooring_read_only"  # execution option of connections that will not write
BUSY_TIMEOUT_MS = 10_000  # how long a writer waits for another one
SQLITE_PRAGMAS = (
    "PRAGMA journal_mode=WAL",  # readers and the one writer do not wait for each other
    "PRAGMA synchronous=FULL",  # a commit survives the power going; NORMAL could lose the last ones
    "PRAGMA foreign_keys=ON",
    f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}",
)
POSTGRESQL = "postgresql"
POSTGRESQL_CONNECT_TIMEOUT_S = 10
# Number of the one lock that all writers of a registry take, among the database's advisory locks.
POSTGRESQL_WRITER_LOCK = int.from_bytes(b"mooring", "big")


def open_database(url: str, password_file: Path | None = None) -> Engine:
    """Connects to the database and migrates it to this build's schema.

    Args:
        url: in SQLAlchemy's form, ``sqlite:////data/registry.db`` or ``postgresql://user@host/name`` for
            instance.
        password_file: file with the password of the URL's user, so that no variable and no flag holds it.

    Raises:
        ConfigurationError: the URL is wrong, the database cannot be reached, or a newer Mooring made it.
    """
    address = _address(url, password_file)
    try:
        engine = _connect(address)
    except (ArgumentError, ModuleNotFoundError) as error:
        raise ConfigurationError(f"the registry's database URL is not usable: {error}") from error
    try:
        migrate(engine)
    except (CommandError, DBAPIError) as error:
        engine.dispose()
        raise ConfigurationError(
            f"the registry's database {address.render_as_string()} cannot be opened or was made by a newer "
            f"Mooring: {error}"
        ) from error
    return engine


def migrate(engine: Engine, revision: str = "head") -> None:
    """Upgrades or downgrades the schema, in one transaction, to a revision (``"base"`` is the empty
    schema)."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        (command.downgrade if revision == "base" else command.upgrade)(config, revision)


def _address(url: str, password_file: Path | None) -> URL:
    try:
        address = make_url(url)
        password = None if password_file is None else password_file.read_text().strip()
    except ArgumentError as error:
        raise ConfigurationError(f"the registry's database URL is not usable: {error}") from error
    except OSError as error:
        raise ConfigurationError(f"the file of database_password_file cannot be read: {error}") from error
    if address.drivername == POSTGRESQL:  # SQLAlchemy would take psycopg2, the driver before ours
        address = address.set(drivername=f"{POSTGRESQL}+psycopg")
    return address if password is None else address.set(password=password)


def _connect(address: URL) -> Engine:
    if address.get_backend_name() == POSTGRESQL:
        if importlib.util.find_spec("psycopg") is None:
            raise ConfigurationError(
                "a registry on PostgreSQL needs psycopg: pip install 'mooring[postgresql]'"
            )
        timeout_s = address.query.get("connect_timeout", str(POSTGRESQL_CONNECT_TIMEOUT_S))
        # A server that was started again has cut the pool's connections; the ping finds that out first.
        engine = create_engine(address, pool_pre_ping=True, connect_args={"connect_timeout": timeout_s})
        event.listen(engine, "begin", _begin_postgresql)
        return engine
    engine = create_engine(address)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    # The driver's own transactions begin late, and never for DDL; ours begin in _begin_sqlite.
    connection.isolation_level = None
    for pragma in SQLITE_PRAGMAS:
        connection.execute(pragma)


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes the lock before it reads, so its reads stay true until it commits.
    connection.exec_driver_sql("BEGIN" if _only_reads(connection) else "BEGIN IMMEDIATE")


def _begin_postgresql(connection: Connection) -> None:
    # The guarantees of _begin_sqlite: readers have one snapshot, and a writer waits for the one before it and
    # then sees what that one wrote. Administrators write seldom; retries of serializable transactions would
    # be more to get wrong.
    if _only_reads(connection):
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        return
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {BUSY_TIMEOUT_MS}")
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({POSTGRESQL_WRITER_LOCK})")


def _only_reads(connection: Connection) -> bool:
    return bool(connection.get_execution_options().get(READ_ONLY, False))
