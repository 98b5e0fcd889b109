"""Carries out one request of a socket inside the process, as an HTTP request to the application."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Scope

from mooring.errors import InternalError
from router.doors.http.errors import error_body
from router.doors.http.json_route import PARSED_BODY
from router.doors.http.sse import DONE_PAYLOAD, payloads
from router.tenancy.in_flight import Held
from router.tenancy.tenant import Tenant

__all__ = ["SocketCall", "http_scope", "socket_event"]

_log = logging.getLogger(__name__)
_ERROR_START = b'{"error":'


def socket_event(
    request_id: str | None,
    kind: Literal["chunk", "completed", "cancelled", "error"],
    *data: bytes,
) -> list[bytes]:
    """An event as the client reads it, in pieces.

    Args:
        request_id: the client's id; None if the event belongs to no request.
        kind: the kind of the event.
        data: JSON, in pieces: OpenAI's chunk, whole answer or error object; nothing at all stands for null.
    """
    head = f'{{"id":{json.dumps(request_id)},"type":"{kind}","data":'.encode()
    return [head, *(data or (b"null",)), b"}"]


class SocketCall:
    """A request under way.

    Args:
        request_id: the client's id.
        scope: the HTTP request's.
        held: what the request holds of its tenant's limits, to be released at its end.
        emit: sends an event's pieces; waits if the client reads slowly.
        ended: called with the id, once, before the last event is sent: from then on the client may use the id
            again.
    """

    def __init__(
        self,
        request_id: str,
        scope: Scope,
        held: Held,
        emit: Callable[[Sequence[bytes]], Awaitable[None]],
        ended: Callable[[str], object],
    ) -> None:
        self._id = request_id
        self._scope = scope
        self._held = held
        self._emit = emit
        self._ended = ended
        self._is_over = False
        self._gone = asyncio.Event()
        self._status = 0
        self._is_stream = False
        self._answer: list[bytes] = []

    def cancel(self) -> None:
        """Makes the application see that the client has hung up; ``run`` returns when the request's resources
        are free."""
        self._gone.set()

    async def run(self, app: ASGIApp) -> None:
        """Answers the request, whatever happens."""
        try:
            await app(self._scope, self._receive, self._send)
        # The edge of the process: a bug must end this request and leave the socket to the others.
        except Exception:
            _log.exception("a bug while answering a request of a socket")
        finally:
            self._held.release()
        if self._gone.is_set():
            await self._end("cancelled")
        else:
            await self._end("error", error_body(InternalError("The server gave no whole answer.")))

    async def _receive(self) -> Message:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if self._gone.is_set():
            return
        if message["type"] == "http.response.start":
            self._status = message["status"]
            content_type = Headers(raw=message["headers"]).get("content-type", "")
            self._is_stream = content_type.startswith("text/event-stream")
        elif self._is_stream:
            await self._send_events(message["body"])
        else:
            self._answer.append(message["body"])
            if not message.get("more_body", False):
                await self._end("completed" if self._status == 200 else "error", *self._answer)

    async def _send_events(self, frame: bytes) -> None:
        for payload in payloads(frame):
            if payload == DONE_PAYLOAD:
                await self._end("completed")
            elif payload.startswith(_ERROR_START):
                await self._end("error", payload)
            else:
                await self._emit(socket_event(self._id, "chunk", payload))

    async def _end(self, kind: Literal["completed", "cancelled", "error"], *data: bytes) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._ended(self._id)
        await self._emit(socket_event(self._id, kind, *data))


def http_scope(request_id: str, socket: Scope, path: str, body: Any, tenant: Tenant) -> Scope:
    """The scope of an HTTP request that a socket's request stands for.

    Args:
        request_id: the client's id.
        socket: the socket's own scope, with the client's address.
        path: path of the HTTP request.
        body: the parsed body.
        tenant: who is served.
    """
    root_path = socket.get("root_path", "")
    headers = [(b"content-type", b"application/json")]
    headers.append((b"x-request-id", request_id.encode("latin-1", "replace")))
    return {
        "type": "http",
        "asgi": socket["asgi"],
        "http_version": "1.1",
        "method": "POST",
        "scheme": "https" if socket.get("scheme") == "wss" else "http",
        "path": root_path + path,
        "raw_path": (root_path + path).encode(),
        "root_path": root_path,
        "query_string": b"",
        "headers": headers,
        "client": socket.get("client"),
        "server": socket.get("server"),
        "state": {"tenant": tenant, PARSED_BODY: body},
    }
