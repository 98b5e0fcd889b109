"""A PostgreSQL of the tests' own: in a temporary folder, on a Unix socket, gone afterwards."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from support.programs import need_program

__all__ = ["PASSWORD", "PostgresCluster", "postgres_cluster"]

USER = "mooring"
PASSWORD = "p@ss:/word"  # in a URL it has to be quoted
START_TIMEOUT_S = 30.0
CONFIGURATION = """
listen_addresses = ''
unix_socket_directories = '{folder}'
fsync = off
max_connections = 60
"""


class PostgresCluster:
    """A running server; ``new_database`` and ``emptied_database`` give each test an empty database."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self._folder = folder
        self._programs = programs
        self._numbers = itertools.count()
        self._process: subprocess.Popen[bytes] | None = None
        self._emptied = ""

    def initialize(self) -> None:
        password_file = self._folder / "password"
        password_file.write_text(PASSWORD)
        password_file.chmod(0o644)
        data = self._folder / "data"
        self._run("initdb", "--pgdata", data, "--username", USER, "--auth", "scram-sha-256", "--pwfile",
                  password_file, "--no-sync", "--encoding", "UTF8", "--locale", "C")  # fmt: skip
        with (data / "postgresql.conf").open("a") as configuration:
            configuration.write(CONFIGURATION.format(folder=self._folder))

    def start(self) -> None:
        """Starts the server and waits until it takes connections."""
        log = (self._folder / "log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self._folder / "data"],
                stdout=log,
                stderr=subprocess.STDOUT,
                **_as_nobody_special(),
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                self.connect().close()
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        """Cuts every connection and ends, as at a restart of the database's machine."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)  # "fast shutdown"
            self._process.wait(30)
            self._process = None

    def connect(self, database: str = "postgres") -> psycopg.Connection[Any]:
        return psycopg.connect(
            host=str(self._folder), user=USER, password=PASSWORD, dbname=database, autocommit=True
        )

    def new_database(self) -> str:
        """The name of a new, empty database."""
        name = f"registry_{next(self._numbers)}"
        with self.connect() as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return name

    def emptied_database(self) -> str:
        """The name of one database, the same at each call, which loses what it has: a new one takes longer."""
        if not self._emptied:
            self._emptied = self.new_database()
            return self._emptied
        with self.connect(self._emptied) as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")
        return self._emptied

    def url(self, database: str, password: str | None = PASSWORD) -> str:
        """SQLAlchemy's URL of a database, in the form that an operator writes."""
        quoted = "" if password is None else ":" + password.replace("@", "%40").replace("/", "%2F")
        return f"postgresql://{USER}{quoted}@/{database}?host={self._folder}"

    def _run(self, program: str, *arguments: str | Path) -> None:
        command: Sequence[str | Path] = [self._programs / program, *arguments]
        subprocess.run(command, check=True, capture_output=True, timeout=60, **_as_nobody_special())


def _as_nobody_special() -> dict[str, Any]:
    """Arguments of ``subprocess``: PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return {}
    account = pwd.getpwnam("postgres")
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": [], "cwd": "/"}


@contextmanager
def postgres_cluster() -> Iterator[PostgresCluster]:
    """A cluster that runs; its folder's path is short, as the path of a Unix socket must be."""
    newest_first = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True
    )
    programs = need_program("initdb", "postgresql", *newest_first).resolve().parent
    folder = Path(tempfile.mkdtemp(prefix="mooring-pg-"))
    try:
        if (owner := _as_nobody_special()) != {}:
            os.chown(folder, owner["user"], owner["group"])
        cluster = PostgresCluster(folder, programs)
        cluster.initialize()
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()
    finally:
        shutil.rmtree(folder)
