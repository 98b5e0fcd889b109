"""OpenAI's API over one WebSocket: many requests at a time, each cancelled by its id.

The client sends ``{"id", "type": "chat.completions" | "completions", "body"}`` and ``{"id", "type":
"cancel"}``. Each request is carried out as the HTTP request that it stands for (``socket_call``), so that the
socket has no behaviour of its own: it accepts, refuses, streams and counts as HTTP does.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mooring.errors import (
    ConflictError,
    InvalidRequestError,
    MooringError,
    PermissionDeniedError,
    RateLimitError,
    UnsupportedFieldError,
)
from router.doors.http.errors import error_body, error_from_validation, error_response
from router.doors.openai.socket_call import SocketCall, socket_event
from router.intake import request_id_from
from router.request.bounds import RouterConfig
from router.services import RouterServices
from router.tenancy.keys import api_key_of

__all__ = ["SOCKET_PATH", "OpenAiSocket"]

_log = logging.getLogger(__name__)

SOCKET_PATH = "/v1/stream"
_PATHS = {"chat.completions": "/v1/chat/completions", "completions": "/v1/completions"}


class OpenAiSocket:
    """The WebSocket endpoint, as plain ASGI.

    Args:
        services: the tenants who may connect, and the limits.
        app: the HTTP application that carries the requests out.
    """

    def __init__(self, services: RouterServices, app: ASGIApp) -> None:
        self._services = services
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # this message says only that the client is there
        headers = Headers(scope=scope)
        try:
            _refuse_foreign_page(headers)
            await self._services.tenancy.tenant_of(api_key_of(headers))
        except MooringError as error:
            named = {"x-request-id": request_id_from(headers.get("x-request-id"))}
            await error_response(error, named)(scope, receive, send)
            return
        await send({"type": "websocket.accept"})
        await _Connection(self._app, scope, receive, send, self._services.config).serve()


class _Frame(BaseModel):
    """A frame from the client. The body is checked by the HTTP application."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: str = Field(min_length=1, max_length=128)
    type: Literal["chat.completions", "completions", "cancel"]
    body: Any = None


class _Connection:
    """One open socket and the requests that run on it.

    Each request awaits the sending of its own events. If the client reads slowly, the transport's buffer
    fills and all requests wait, each with one event in hand.
    """

    def __init__(
        self, app: ASGIApp, scope: Scope, receive: Receive, send: Send, config: RouterConfig
    ) -> None:
        self._app = app
        self._scope = scope
        self._receive = receive
        self._send = send
        self._max_requests = config.max_socket_requests
        self._calls: dict[str, SocketCall] = {}

    async def serve(self) -> None:
        """Returns when the client is gone and the resources of all its requests are free."""
        async with asyncio.TaskGroup() as tasks:
            while (message := await self._receive())["type"] != "websocket.disconnect":
                await self._take(message, tasks)
            for call in self._calls.values():
                call.cancel()

    async def _take(self, message: Message, tasks: asyncio.TaskGroup) -> None:
        raw = _json(message)
        try:
            frame = _frame(raw)
            if frame.type == "cancel":
                self._cancel(frame)
                return
            call = self._start(frame)
        except MooringError as error:
            await self._emit(socket_event(self._blamed(raw), "error", error_body(error)))
            return
        tasks.create_task(call.run(self._app), name=f"socket-{frame.id}")

    def _start(self, frame: _Frame) -> SocketCall:
        if frame.id in self._calls:
            raise ConflictError(f"A request with the id '{frame.id}' is running on this socket.", param="id")
        if len(self._calls) >= self._max_requests:
            raise RateLimitError(
                f"At most {self._max_requests} requests may run on one socket: wait until one has ended."
            )
        path = _PATHS[frame.type]
        call = SocketCall(frame.id, self._scope, path, _body(frame), self._emit, self._calls.pop)
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
        return sent if isinstance(sent, str) and sent not in self._calls else None

    async def _emit(self, event: str) -> None:
        try:
            await self._send({"type": "websocket.send", "text": event})
        # The client is gone, or about to be: uvicorn raises RuntimeError for a socket that it is closing
        # itself because no pong came. ``serve`` learns of it by its next message.
        except (OSError, RuntimeError) as error:
            _log.debug("an event found no reader: %r", error)


def _refuse_foreign_page(headers: Headers) -> None:
    """Refuses pages of other sites. Browsers let any page open a socket to any server, this machine's own
    included. Pages cannot add a key, so if none came the page must be one of ours.

    Raises:
        PermissionDeniedError: another site's page wants to connect.
    """
    origin = headers.get("origin")
    if origin is None or api_key_of(headers) is not None:
        return
    try:
        site = urlsplit(origin).netloc
    except ValueError:  # not an address at all
        site = None
    if site != headers.get("host"):
        raise PermissionDeniedError("Pages of other sites may not connect without a key.")


def _json(message: Message) -> Any:
    """The JSON of a frame; if it cannot be read, the error itself."""
    text = message.get("text")
    if text is None:
        return InvalidRequestError("Send JSON in text frames.")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return InvalidRequestError(f"The frame is not valid JSON: {error}.")


def _body(frame: _Frame) -> bytes:
    try:
        return json.dumps(frame.body).encode()
    except RecursionError as error:  # it was just shallow enough to be read
        raise InvalidRequestError("The 'body' is nested too deeply.", param="body") from error


def _frame(raw: Any) -> _Frame:
    if isinstance(raw, MooringError):
        raise raw
    if not isinstance(raw, dict):
        raise InvalidRequestError("A frame must be a JSON object.")
    try:
        return _Frame.model_validate(raw)
    except ValidationError as error:
        complaints = [{**each, "loc": ("frame", *each["loc"])} for each in error.errors()]
        raise error_from_validation(complaints) from error
