"""Passes calls of the web UI's pages on to the server: those that the pages make, and no others."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Coroutine, Mapping
from typing import Any

import httpx
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from admin_ui.upstream import unreachable
from mooring.errors import NotFoundError, RequestTooLargeError
from mooring.units import MIB

__all__ = ["ADMIN_CALLS", "VISITOR_CALLS", "Calls", "forward"]

_NAME = r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}"
_WORD = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"

Calls = tuple[tuple[str, re.Pattern[str]], ...]
"""Methods and whole paths that are passed on."""


def _calls(*rows: tuple[str, str]) -> Calls:
    return tuple((method, re.compile(path)) for method, path in rows)


ADMIN_CALLS = _calls(
    ("GET", r"status|devices|workers|queues|models|registrations|deployments|tenants|slo|slo-classes|events"),
    ("GET", rf"history|live/snapshot|registrations/{_WORD}|tenants/{_WORD}/keys"),
    ("GET", rf"models/{_NAME}/versions|deployments/{_NAME}"),
    ("POST", r"models|deployments|tenants|slo-classes|fit|playground/(?:chat/)?completions"),
    ("POST", rf"registrations/{_WORD}/(?:cancel|resume)|tenants/{_WORD}/keys"),
    ("POST", rf"deployments/{_NAME}/(?:sleep|wake)"),
    ("PATCH", rf"deployments/{_NAME}|tenants/{_WORD}|slo-classes/{_NAME}"),
    ("DELETE", rf"models/{_NAME}|deployments/{_NAME}|slo-classes/{_NAME}"),
    ("DELETE", rf"tenants/{_WORD}|tenants/{_WORD}/keys/{_WORD}"),
)
"""Calls of the admin API, below ``/admin/v1/``."""

VISITOR_CALLS = _calls(("GET", r"models"), ("POST", r"(?:chat/)?completions"))
"""Calls below ``/v1/`` of a visitor, who has a key of their own."""

_SENT_ON = ("accept", "content-type", "x-mooring-tenant", "x-mooring-progress", "x-request-id")
_SENT_BACK = frozenset(
    {
        "content-type",
        "link",
        "retry-after",
        "x-mooring-next",
        "x-mooring-seq",
        "x-request-id",
        "x-accel-buffering",
    }
)
_MAX_BODY_BYTES = 4 * MIB
_MAX_QUERY_CHARS = 2048
_CLIENT_GONE = 499


async def forward(
    client: httpx.AsyncClient, request: Request, calls: Calls, prefix: str, path: str, key: str | None
) -> Response:
    """The server's answer to a request, passed on as it comes. If the browser goes away, so does the call.

    Args:
        calls: those that may be made.
        prefix: of the server's path.
        path: the rest of it, not escaped.
        key: sent as the bearer; None for none.

    Raises:
        NotFoundError: no page makes such a call.
        RequestTooLargeError: its body is larger than those of any page.
        ModelUnavailableError: the server cannot be reached.
    """
    query = request.url.query
    is_known = any(method == request.method and pattern.fullmatch(path) for method, pattern in calls)
    has_dots = any(step in ("", ".", "..") for step in path.split("/"))
    if not is_known or has_dots or len(query) > _MAX_QUERY_CHARS:
        raise NotFoundError("This UI passes no such call on.")
    headers = {name: request.headers[name] for name in _SENT_ON if name in request.headers}
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    sent = client.build_request(
        request.method,
        f"{prefix}{path}" + (f"?{query}" if query else ""),
        content=await _body(request),
        headers=headers,
    )
    try:
        answer = await _unless_left(request, client.send(sent, stream=True))
    except httpx.HTTPError as error:
        raise unreachable(client, error) from error
    if answer is None:
        return Response(status_code=_CLIENT_GONE)  # nobody reads it
    passed = {name: value for name, value in answer.headers.items() if name in _SENT_BACK}
    return _Passed(answer, {**passed, "cache-control": "no-store"})


class _Passed(StreamingResponse):
    """An answer of the server. Its connection is given back also if the browser has gone before it begins."""

    def __init__(self, answer: httpx.Response, headers: Mapping[str, str]) -> None:
        super().__init__(_chunks(answer), answer.status_code, headers=headers)
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._answer.aclose()


async def _body(request: Request) -> bytes | None:
    if request.method in ("GET", "DELETE"):
        return None
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BODY_BYTES:
            raise RequestTooLargeError(f"The body is larger than {_MAX_BODY_BYTES} bytes.")
    return bytes(body)


async def _unless_left(
    request: Request, sending: Coroutine[Any, Any, httpx.Response]
) -> httpx.Response | None:
    """The answer; None if the browser goes away before it begins, and with it the call."""
    answering = asyncio.create_task(sending)
    leaving = asyncio.create_task(_left(request))
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return answering.result() if answering.done() else None
    finally:
        answering.cancel()
        leaving.cancel()
        await asyncio.wait({answering, leaving})


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _chunks(answer: httpx.Response) -> AsyncIterator[bytes]:
    """The body as it comes; a connection that breaks ends it, and the page sees that it is not whole."""
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    except httpx.HTTPError:
        return
