"""Answers that are sent in pieces, server-sent events above all, and what happens when the client goes away."""

from __future__ import annotations

import asyncio
import logging
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mooring.errors import InternalError, MooringError
from router.doors.http.errors import error_body

__all__ = [
    "DONE",
    "DONE_PAYLOAD",
    "ClientGoneError",
    "EventStream",
    "StreamedAnswer",
    "event",
    "payloads",
    "until_disconnect",
]

_log = logging.getLogger(__name__)
T = TypeVar("T")

DONE_PAYLOAD = b"[DONE]"
DONE = b"data: " + DONE_PAYLOAD + b"\n\n"


class ClientGoneError(Exception):
    """The client closed the connection, so nobody reads an answer."""


def event(payload: bytes) -> bytes:
    """One event around JSON text."""
    return b"data: " + payload + b"\n\n"


def payloads(frame: bytes) -> list[bytes]:
    """The JSON of each event in a piece of whole events, without what ``event`` put around it."""
    return [each.removeprefix(b"data: ") for each in frame.split(b"\n\n") if each]


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Runs ``work`` while the client is there. When the client goes, cancels it and waits for its end.

    The request's body must have been read before.

    Raises:
        ClientGoneError: the client went first.
    """
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_disconnect(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGoneError
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


class StreamedAnswer(Response):
    """An answer that is sent in pieces, while its client is there. Subclasses send it in ``_send``.

    Args:
        headers: headers to send.
        close: called at the end, whatever ended the sending.
    """

    def __init__(self, headers: Mapping[str, str], close: Callable[[], Awaitable[None]]) -> None:
        super().__init__(headers=headers)
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_disconnect(receive, self._send(send))
        except (ClientGoneError, OSError):
            return
        finally:
            await self._close()

    @abstractmethod
    async def _send(self, send: Send) -> None: ...


class EventStream(StreamedAnswer):
    """An answer of server-sent events.

    Args:
        frames: pieces to send, each of one or more whole events. An error that it raises becomes the last
            event, since the status has been sent by then.
        close: called at the end, whatever ended the stream.
        error_body: turns an error into JSON.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        frames: AsyncIterator[bytes],
        close: Callable[[], Awaitable[None]],
        *,
        error_body: Callable[[MooringError], bytes] = error_body,
    ) -> None:
        super().__init__({"cache-control": "no-cache", "x-accel-buffering": "no"}, close)
        del self.headers["content-length"]
        self._frames = frames
        self._error_body = error_body

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for frame in self._frames:
                await send({"type": "http.response.body", "body": frame, "more_body": True})
        except MooringError as error:
            await send(
                {"type": "http.response.body", "body": event(self._error_body(error)), "more_body": True}
            )
        except OSError:
            raise
        # The edge of the process: a bug must end this stream visibly and no other.
        except Exception:
            _log.exception("a bug in the middle of a stream")
            body = event(self._error_body(InternalError("An error of the server's own; it has been logged.")))
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
