"""OpenAI's API over one WebSocket: many requests at a time, each cancelled by its id.

The client sends ``{"id", "type": "chat.completions" | "completions", "body"}`` and ``{"id", "type":
"cancel"}``. Each request is carried out as the HTTP request that it stands for (``socket_call``), so that the
socket has no behaviour of its own: it accepts, refuses, streams and counts as HTTP does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mooring.errors import (
    ConflictError,
    InvalidRequestError,
    MooringError,
    RateLimitError,
    UnsupportedFieldError,
)
from router.doors.http.errors import error_body, error_from_validation
from router.doors.http.json_route import parse_json
from router.doors.openai.socket_call import SocketCall, http_scope, socket_event
from router.services import RouterServices
from router.tenancy.keys import api_key_of

__all__ = ["SOCKET_PATH", "OpenAiSocket"]

_log = logging.getLogger(__name__)

SOCKET_PATH = "/v1/stream"
_MAX_ID_CHARS = 128
_PATHS = {"chat.completions": "/v1/chat/completions", "completions": "/v1/completions"}


class OpenAiSocket:
    """The WebSocket endpoint, as plain ASGI, except that it sends text in pieces, as ``SocketConnection`` takes it.

    Args:
        services: the tenants, and the limits. The guard has let the socket in; its key is looked at again for each
            request.
        app: the HTTP application that carries the requests out.
    """

    def __init__(self, services: RouterServices, app: ASGIApp) -> None:
        self._services = services
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # this message says only that the client is there
        await send({"type": "websocket.accept"})
        await _Connection(self._app, scope, receive, send, self._services).serve()


class _Frame(BaseModel):
    """A frame from the client. The body is checked by the HTTP application."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: str = Field(min_length=1, max_length=_MAX_ID_CHARS)
    type: Literal["chat.completions", "completions", "cancel"]
    body: Any = None


class _Connection:
    """One open socket and the requests that run on it.

    Each request awaits the sending of its own events. If the client reads slowly, the transport's buffer
    fills and all requests wait, each with one event in hand.
    """

    def __init__(
        self, app: ASGIApp, scope: Scope, receive: Receive, send: Send, services: RouterServices
    ) -> None:
        self._app = app
        self._scope = scope
        self._key = api_key_of(Headers(scope=scope))
        self._services = services
        self._receive = receive
        self._send = send
        self._max_requests = services.config.max_socket_requests
        self._calls: dict[str, SocketCall] = {}

    async def serve(self) -> None:
        """Returns when the client is gone and the resources of all its requests are free."""
        async with asyncio.TaskGroup() as tasks:
            while (message := await self._receive())["type"] != "websocket.disconnect":
                await self._take(message, tasks)
            for call in self._calls.values():
                call.cancel()

    async def _take(self, message: Message, tasks: asyncio.TaskGroup) -> None:
        refusal = await self._refusal(message.pop("text", None), tasks)
        if refusal is not None:  # nothing of the frame is left, since the client may not read for long
            await self._emit(refusal)

    async def _refusal(self, text: str | None, tasks: asyncio.TaskGroup) -> list[bytes] | None:
        """Does what a frame asks for; returns the event that refuses it, if it is refused."""
        raw = None
        try:
            data = _data(text)
            num_bytes = len(data)
            raw = await parse_json(data)
            del data
            frame = _frame(raw)
            if frame.type == "cancel":
                self._cancel(frame)
                return None
            call = await self._start(frame, num_bytes)
        except MooringError as error:
            return socket_event(self._blamed(raw), "error", error_body(error))
        tasks.create_task(call.run(self._app), name=f"socket-{frame.id}")
        return None

    async def _start(self, frame: _Frame, num_bytes: int) -> SocketCall:
        if frame.id in self._calls:
            raise ConflictError(f"A request with the id '{frame.id}' is running on this socket.", param="id")
        if len(self._calls) >= self._max_requests:
            raise RateLimitError(
                f"At most {self._max_requests} requests may run on one socket: wait until one has ended."
            )
        tenant = await self._services.tenancy.tenant_of(self._key)
        held = self._services.in_flight.take(tenant, body_bytes=num_bytes)
        scope = http_scope(frame.id, self._scope, _PATHS[frame.type], frame.body, tenant)
        call = SocketCall(frame.id, scope, held, self._emit, self._calls.pop)
        self._calls[frame.id] = call
        return call

    def _cancel(self, frame: _Frame) -> None:
        """Cancels a request. An id that has ended or never was is no error: the client could not know."""
        if frame.body is not None:
            raise UnsupportedFieldError("A 'cancel' has no 'body'.", param="body")
        call = self._calls.get(frame.id)
        if call is not None:
            call.cancel()

    def _blamed(self, raw: Any) -> str | None:
        """The id under which to send an error. An error under an id says that its request has ended, so an
        error about a bad frame must not have the id of a running request."""
        sent = raw.get("id") if isinstance(raw, dict) else None
        is_id = isinstance(sent, str) and len(sent) <= _MAX_ID_CHARS
        return sent if is_id and sent not in self._calls else None

    async def _emit(self, event: Sequence[bytes]) -> None:
        try:
            await self._send({"type": "websocket.send", "pieces": event})
        # The client is gone, or about to be: uvicorn raises RuntimeError for a socket that it is closing
        # itself because no pong came. ``serve`` learns of it by its next message.
        except (OSError, RuntimeError) as error:
            _log.debug("an event found no reader: %r", error)


def _data(text: str | None) -> bytes:
    """A frame's bytes.

    Raises:
        InvalidRequestError: it is no text.
    """
    if text is None:
        raise InvalidRequestError("Send JSON in text frames.")
    return text.encode()


def _frame(raw: Any) -> _Frame:
    if not isinstance(raw, dict):
        raise InvalidRequestError("A frame must be a JSON object.")
    try:
        return _Frame.model_validate(raw)
    except ValidationError as error:
        complaints = [{**each, "loc": ("frame", *each["loc"])} for each in error.errors()]
        raise error_from_validation(complaints) from error
