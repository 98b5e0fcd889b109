"""Queries over the memory manager's decisions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from sqlalchemy import delete, func, select

from model_registry.records import EventRecord, NewEvent
from model_registry.schema import EventRow
from model_registry.transactions import Transactions

__all__ = ["MAX_EVENTS_LISTED", "EventQueries"]

MAX_EVENTS_LISTED = 1000
FIELDS = tuple(field.name for field in dataclasses.fields(EventRecord))


class EventQueries(Transactions):
    """Decisions of all servers that share the database."""

    def add_events(self, events: Sequence[NewEvent], max_kept: int) -> None:
        """Keeps events, in one transaction, and drops the oldest.

        Args:
            max_kept: rows that stay at most; one or a few fewer if the database skipped numbers.
        """
        with self._writing() as session:
            session.add_all(EventRow(**dataclasses.asdict(each)) for each in events)
            session.flush()
            newest = session.scalar(select(func.max(EventRow.id))) or 0
            session.execute(delete(EventRow).where(EventRow.id <= newest - max_kept))

    def list_events(
        self,
        limit: int,
        *,
        before_id: int | None = None,
        after_id: int | None = None,
        deployment: str | None = None,
        kinds: Sequence[str] = (),
        oldest_first: bool = False,
    ) -> list[EventRecord]:
        """Events, newest first unless ``oldest_first``.

        Args:
            limit: most events to return; never more than ``MAX_EVENTS_LISTED``.
            before_id: only events before this one.
            after_id: only events after this one.
            kinds: only events of these kinds; empty means all.
        """
        query = select(EventRow).limit(min(limit, MAX_EVENTS_LISTED))
        query = query.order_by(EventRow.id if oldest_first else EventRow.id.desc())
        if before_id is not None:
            query = query.where(EventRow.id < before_id)
        if after_id is not None:
            query = query.where(EventRow.id > after_id)
        if deployment is not None:
            query = query.where(EventRow.deployment == deployment)
        if kinds:
            query = query.where(EventRow.kind.in_(kinds))
        with self._reading() as session:
            return [_record(row) for row in session.scalars(query)]

    def newest_event_id(self) -> int:
        """The highest id of an event; 0 if there is none."""
        with self._reading() as session:
            return session.scalar(select(func.max(EventRow.id))) or 0


def _record(row: EventRow) -> EventRecord:
    values = {name: getattr(row, name) for name in FIELDS}
    return EventRecord(**{**values, "detail": row.detail or {}})
