"""Transactions on the registry's database, shared by its queries."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from sqlalchemy import Engine, Select
from sqlalchemy.exc import DataError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session, sessionmaker

from model_registry.database import READ_ONLY
from mooring.errors import (
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    RegistryUnavailableError,
)

__all__ = ["Transactions", "one"]

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Transactions:
    """Opens transactions that read, and transactions that write.

    Args:
        engine: the engine that ``database.open_database`` returned.
        now: seconds of the Unix epoch.
    """

    def __init__(self, engine: Engine, now: Callable[[], float] = time.time) -> None:
        self._write_sessions = sessionmaker(engine)
        self._read_sessions = sessionmaker(engine.execution_options(**{READ_ONLY: True}))
        self._now = now

    @contextmanager
    def _writing(self) -> Iterator[Session]:
        """A transaction that commits at its end, and is rolled back if an exception ends it.

        Raises:
            ConflictError: another program wrote the same thing at the same time, past our lock.
            InvalidRequestError: the database cannot hold a value.
            RegistryUnavailableError: the database does not answer.
        """
        with _named_errors(), self._write_sessions.begin() as session:
            yield session

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        """A transaction that sees one snapshot of the database. Raises as ``_writing`` does."""
        with _named_errors(), self._read_sessions.begin() as session:
            yield session


@contextmanager
def _named_errors() -> Iterator[None]:
    """Raises the database's errors as errors of ours."""
    try:
        yield
    except IntegrityError as error:
        raise ConflictError("someone else changed the same thing at this moment: try again") from error
    except (DataError, UnicodeEncodeError) as error:  # NUL, half a surrogate pair, a text too long
        raise InvalidRequestError("a value has characters or a length that cannot be kept") from error
    except (OperationalError, InterfaceError, PoolTimeoutError) as error:
        logger.warning("the registry's database failed: %s", getattr(error, "orig", error))
        raise RegistryUnavailableError("the registry's database does not answer: try again") from error


def one(session: Session, query: Select[T], what: str) -> T:
    """The one row of a query.

    Raises:
        NotFoundError: there is no such row; the message names ``what``.
    """
    row = session.scalar(query)
    if row is None:
        raise NotFoundError(f"there is no {what}")
    return row
