"""Lists of the admin API in pages: what a request asks for, and how its answer says where the next page begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar
from urllib.parse import urlencode

from fastapi import Depends, Query, Request, Response

from model_registry.paging import Page

__all__ = ["MAX_LISTED", "Listing", "Paged", "tell_next"]

MAX_LISTED = 10_000
"""Entries of an answer to a request that does not say how many it wants."""

_MAX_LIMIT = 1000
_NEXT_HEADER = "x-mooring-next"
T = TypeVar("T")


class Listing:
    """A page of a list as a request asks for it."""

    def __init__(
        self,
        request: Request,
        response: Response,
        limit: Annotated[
            int | None, Query(ge=1, le=_MAX_LIMIT, description="Most entries of a page.")
        ] = None,
        after: Annotated[
            str | None,
            Query(
                min_length=1, max_length=128, description="Where the page before ended, as its answer said."
            ),
        ] = None,
        search: Annotated[str, Query(max_length=128, description="Only names that begin so.")] = "",
    ) -> None:
        self._request = request
        self._response = response
        self._limit = limit or MAX_LISTED
        self._after = after
        self._search = search

    @property
    def page(self) -> Page:
        """The page to look up: one entry more than is shown, to know whether there are more."""
        return Page(self._limit + 1, self._after, self._search)

    def shown(self, found: Sequence[T], cursor_of: Callable[[T], str]) -> Sequence[T]:
        """The entries to show; the answer's headers tell where the next page begins, if there is one."""
        if len(found) <= self._limit:
            return found
        found = found[: self._limit]
        tell_next(self._request, self._response, "after", cursor_of(found[-1]))
        return found


Paged = Annotated[Listing, Depends()]


def tell_next(request: Request, response: Response, parameter: str, cursor: str) -> None:
    """Puts the place where the next page begins on the headers of an answer."""
    query = [(name, value) for name, value in request.query_params.multi_items() if name != parameter]
    response.headers[_NEXT_HEADER] = cursor
    response.headers["link"] = f'<{request.url.path}?{urlencode([*query, (parameter, cursor)])}>; rel="next"'
