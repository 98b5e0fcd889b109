"""Middleware for every HTTP answer, as plain ASGI: a request id, and a bound on the bytes that are read."""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mooring.errors import RequestTooLargeError
from router.doors.http.errors import error_response
from router.intake import request_id_from

__all__ = ["BodyLimitMiddleware", "RequestIdMiddleware"]


class RequestIdMiddleware:
    """Puts ``x-request-id`` on every answer, and the id into ``request.state.request_id``."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_from(Headers(scope=scope).get("x-request-id"))
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        await self._app(scope, receive, send_named)


class BodyLimitMiddleware:
    """Answers 413 to a body larger than ``max_bytes``, by its announced length or by the bytes that have
    come."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._message = f"The body is larger than the {max_bytes} bytes that this server accepts."

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > self._max_bytes:
            # The server reads and drops the rest, so that the client gets to see the answer.
            await error_response(RequestTooLargeError(self._message))(scope, receive, send)
            return
        received_bytes = 0

        async def receive_counted() -> Message:
            nonlocal received_bytes
            message = await receive()
            received_bytes += len(message.get("body", b""))
            if received_bytes > self._max_bytes:
                # The framework passes its own exceptions through unchanged, and no others.
                raise HTTPException(413, self._message)
            return message

        await self._app(scope, receive_counted, send)
