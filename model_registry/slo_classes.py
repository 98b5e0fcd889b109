"""Queries over SLO classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from model_registry.names import check_name
from model_registry.records import SLOClassRecord
from model_registry.rows import slo_class_record
from model_registry.schema import SLOClassRow
from model_registry.transactions import Transactions, one
from mooring.errors import ConflictError
from mooring.slo import SLOClass, change_slo_class, check_slo_class

__all__ = ["SLOClassQueries", "slo_class_row"]

MAX_NAMED = 10  # tenants in a message


class SLOClassQueries(Transactions):
    """SLO classes."""

    def create_slo_class(self, slo_class: SLOClass) -> SLOClassRecord:
        """Makes a class.

        Raises:
            InvalidRequestError: a value is not allowed; ``param`` names it.
            ConflictError: the name is taken.
        """
        check_name(slo_class.name)
        check_slo_class(slo_class)
        with self._writing() as session:
            if session.scalar(select(SLOClassRow.id).where(SLOClassRow.name == slo_class.name)) is not None:
                raise ConflictError(f"an SLO class {slo_class.name!r} exists already", param="name")
            row = SLOClassRow(**dataclasses.asdict(slo_class))
            session.add(row)
            session.flush()
            return slo_class_record(row)

    def list_slo_classes(self) -> list[SLOClassRecord]:
        """All classes by name."""
        with self._reading() as session:
            query = select(SLOClassRow).options(selectinload(SLOClassRow.tenants)).order_by(SLOClassRow.name)
            return [slo_class_record(row) for row in session.scalars(query)]

    def change_slo_class(self, name: str, changes: Mapping[str, Any]) -> SLOClassRecord:
        """Changes some fields of a class; None puts one back to its default, if it has one.

        Raises:
            InvalidRequestError: a value is not allowed; ``param`` names it.
            NotFoundError: there is no such class.
        """
        with self._writing() as session:
            row = slo_class_row(session, name)
            changed = change_slo_class(slo_class_record(row).slo_class, changes)
            for field, value in dataclasses.asdict(changed).items():
                setattr(row, field, value)
            session.flush()
            return slo_class_record(row)

    def delete_slo_class(self, name: str) -> None:
        """Removes a class.

        Raises:
            NotFoundError: there is no such class.
            ConflictError: tenants have it, or may use it; the message names them.
        """
        with self._writing() as session:
            row = slo_class_row(session, name)
            if tenants := sorted({each.name for each in (*row.tenants, *row.allowed_tenants)}):
                more = f" and {len(tenants) - MAX_NAMED} more" if len(tenants) > MAX_NAMED else ""
                named = ", ".join(map(repr, tenants[:MAX_NAMED]))
                raise ConflictError(
                    f"SLO class {name!r} is one that tenants {named}{more} have or may use: take it from them first"
                )
            session.delete(row)


def slo_class_row(session: Session, name: str) -> SLOClassRow:
    """The row of a class. Raises ``NotFoundError``."""
    return one(session, select(SLOClassRow).where(SLOClassRow.name == name), f"SLO class {name!r}")
