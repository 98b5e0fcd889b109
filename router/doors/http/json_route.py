"""Routes whose JSON bodies are read within bounds, and the base of those bodies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, model_validator
from pydantic_core import PydanticCustomError
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from mooring.units import KIB
from router.doors.http.errors import TOO_MANY_FIELDS
from router.doors.http.json_body import read_json

__all__ = ["PARSED_BODY", "BoundedBody", "JsonRoute", "parse_json", "read_body"]

PARSED_BODY = "parsed_body"
"""The name under which ``scope["state"]`` holds a body that has been parsed already."""

_MAX_FIELDS = 256
_INLINE_BYTES = 256 * KIB  # a longer body is parsed in a thread, between whose steps others get their turn
_READ = b"-"


class BoundedBody(BaseModel):
    """Base of bodies and their parts: an object with very many fields is refused before each is complained of."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_many_fields(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and len(raw) > _MAX_FIELDS:
            raise PydanticCustomError(TOO_MANY_FIELDS, "it has too many fields")
        return raw


class JsonRoute(APIRoute):
    """A route that reads its JSON body with ``read_json``, before the framework would read it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def read_and_handle(request: Request) -> Response:
            await _read_into(request)
            return await handle(request)

        return read_and_handle


async def read_body(receive: Receive) -> bytes:
    """The whole body of a request. Nothing of it is kept if its client goes away.

    Raises:
        ClientDisconnect: the client went away before its end.
        MooringError: the body is too large, or too much is in flight.
    """
    pieces: list[bytes] = []
    try:
        is_whole = False
        while not is_whole:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            pieces.append(message.pop("body", b""))
            is_whole = not message.get("more_body", False)
        return b"".join(pieces)
    finally:
        pieces.clear()


async def parse_json(body: bytes) -> Any:
    """``read_json`` that does not hold up the event loop for long.

    Raises:
        InvalidRequestError: as ``read_json``.
    """
    return read_json(body) if len(body) <= _INLINE_BYTES else await asyncio.to_thread(read_json, body)


async def _read_into(request: Request) -> None:
    """Puts the parsed body where the framework looks for it; the bytes themselves are needed no longer."""
    state = request.scope["state"]
    if PARSED_BODY in state:
        request._json = state.pop(PARSED_BODY)
        request._body = _READ
        return
    body = await read_body(request.receive)
    if not body:
        request._body = body
        return
    request._json = await parse_json(body)
    request._body = _READ
