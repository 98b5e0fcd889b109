"""Transactions on the registry's database, shared by its queries."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from sqlalchemy import Engine, Select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from model_registry.database import READ_ONLY
from mooring.errors import ConflictError, NotFoundError

__all__ = ["Transactions", "one"]

T = TypeVar("T")


class Transactions:
    """Opens transactions that read, and transactions that write.

    Args:
        engine: of ``database.open_database``.
        now: seconds of the Unix epoch.
    """

    def __init__(self, engine: Engine, now: Callable[[], float] = time.time) -> None:
        self._write_sessions = sessionmaker(engine)
        self._read_sessions = sessionmaker(engine.execution_options(**{READ_ONLY: True}))
        self._now = now

    @contextmanager
    def _writing(self) -> Iterator[Session]:
        """Commits at its end, or rolls back what raised.

        Raises:
            ConflictError: another writer was faster, on a database that lets two run side by side.
        """
        try:
            with self._write_sessions.begin() as session:
                yield session
        except IntegrityError as error:
            raise ConflictError("someone else changed the same thing at this moment: try again") from error

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        with self._read_sessions.begin() as session:
            yield session


def one(session: Session, query: Select[T], what: str) -> T:
    """The one row of a query.

    Raises:
        NotFoundError: there is none; the message names ``what``.
    """
    row = session.scalar(query)
    if row is None:
        raise NotFoundError(f"there is no {what}")
    return row
