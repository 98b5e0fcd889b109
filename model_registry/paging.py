"""Pages of long lists that are in the order of a name."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

from sqlalchemy import ColumnElement, Select, func
from sqlalchemy.orm import InstrumentedAttribute

__all__ = ["WHOLE", "Page", "by_name", "starts_with"]

T = TypeVar("T")


class Page(NamedTuple):
    """A part of a list.

    Attributes:
        limit: most entries; None for all.
        after: the entry after which it begins; None for the first.
        search: how names begin that are listed; empty for all.
    """

    limit: int | None = None
    after: str | None = None
    search: str = ""


WHOLE = Page()


def by_name(query: Select[T], name: InstrumentedAttribute[str], page: Page) -> Select[T]:
    """A query of that page of what the query finds, in the order of a column."""
    if page.after is not None:
        query = query.where(name > page.after)
    if page.search:
        query = query.where(starts_with(name, page.search))
    return query.order_by(name).limit(page.limit)


def starts_with(column: InstrumentedAttribute[str], text: str) -> ColumnElement[bool]:
    """Whether a column begins with a text, letter by letter: LIKE takes capitals for small letters in SQLite."""
    return func.substr(column, 1, len(text)) == text
