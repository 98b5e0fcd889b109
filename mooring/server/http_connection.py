"""Connections of the HTTP door: uvicorn's, with bounds on what a client can make the server keep and wait
for."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httptools
import uvicorn
from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame

from mooring.errors import InvalidRequestError
from mooring.server.reader_timer import ReaderTimer
from router.doors.http.errors import error_body

__all__ = ["DoorConfig", "HttpConnection", "HttpLimits", "SocketConnection"]


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bounds on what a client of the HTTP door can make it keep and wait for before a request is understood.

    Attributes:
        max_frame_bytes: most bytes of a WebSocket message; a larger one closes the WebSocket unread.
        max_head_bytes: most bytes of a request's line and headers together; also of trailers.
        request_timeout_s: seconds within which a request must arrive, and a new connection must begin with
            one.
        max_headers: most headers of a request.
        keep_alive_s: seconds for which a connection may rest between requests. Longer than clients and
            proxies let theirs rest: otherwise they would send requests into a connection that is just being
            closed.
        max_reader_stall_s: seconds without any progress after which a client is given up that does not read what is
            sent to it. It needs to answer no ping of a WebSocket in time: a slow one finds that behind all else.
    """

    max_frame_bytes: int
    max_head_bytes: int
    request_timeout_s: float
    max_headers: int = 100
    keep_alive_s: int = 75
    max_reader_stall_s: float = 60.0


class DoorConfig(uvicorn.Config):
    """uvicorn's settings, and the limits of its connections."""

    def __init__(self, app: Any, limits: HttpLimits, **options: Any) -> None:
        super().__init__(
            app,
            http=HttpConnection,
            ws=SocketConnection,
            ws_max_size=limits.max_frame_bytes,
            ws_ping_timeout=None,
            timeout_keep_alive=limits.keep_alive_s,
            **options,
        )
        self.limits = limits


class HttpConnection(HttpToolsProtocol):
    """Hangs up on a client that sends a head without end or a request that never ends, and says what is wrong
    in an error object like all others."""

    config: DoorConfig

    def __init__(self, config: DoorConfig, *args: Any, **options: Any) -> None:
        super().__init__(config, *args, **options)
        self._limits = config.limits
        self._num_unread_bytes = 0  # bytes since the parser last understood something
        self._is_new = True
        self._is_head = False
        self._wrong: tuple[HTTPStatus, str] | None = None
        self._deadline: asyncio.TimerHandle | None = None

    # The transport's side ----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._reader = ReaderTimer(transport, self._limits.max_reader_stall_s)
        self._start_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._reader.stop()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader.start()

    def resume_writing(self) -> None:
        self._reader.stop()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._num_unread_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            status, message = self._wrong or (HTTPStatus.BAD_REQUEST, "The request is not valid HTTP.")
            self._refuse(status, message)
        except httptools.HttpParserUpgrade as upgrade:
            if self._should_upgrade():
                self._stop_waiting()
                self.handle_websocket_upgrade()
            else:
                self._go_on_without_upgrade(data[upgrade.args[0] :])
        else:
            if self._num_unread_bytes > self._limits.max_head_bytes:
                self._refuse(*self._head_too_large())

    # The parser's side -------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._num_unread_bytes = 0
        self._is_new = False
        self._is_head = True
        self._start_waiting()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_head:  # uvicorn would take trailers for headers
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._num_unread_bytes = 0
        self._is_head = False
        self._wrong = self._wrong_head()
        if self._wrong is not None:
            raise ValueError(self._wrong[1])  # ends the parser; ``data_received`` answers
        if not self._is_refused_upgrade():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._num_unread_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._is_refused_upgrade():
            return
        self._num_unread_bytes = 0
        self._stop_waiting()
        super().on_message_complete()

    def _wrong_head(self) -> tuple[HTTPStatus, str] | None:
        num_bytes = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if num_bytes > self._limits.max_head_bytes or len(self.headers) > self._limits.max_headers:
            return self._head_too_large()
        num_hosts = sum(name == b"host" for name, _ in self.headers)
        if num_hosts > 1 or (num_hosts == 0 and self.parser.get_http_version() == "1.1"):
            return HTTPStatus.BAD_REQUEST, f"A request needs one Host header, and this one has {num_hosts}."
        return None

    def _head_too_large(self) -> tuple[HTTPStatus, str]:
        most = f"{self._limits.max_headers} headers and {self._limits.max_head_bytes} bytes"
        return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"A request may have at most {most} of headers."

    # Upgrades that are not offered -------------------------------------------------------------------

    def _is_refused_upgrade(self) -> bool:
        """Whether the request asks for another protocol than WebSocket, as some clients do with their first
        request: ``Upgrade: h2c``. It may be answered as if it had not asked; but the parser leaves out its
        body."""
        return bool(
            self.parser.should_upgrade()
            and self.parser.get_method() != b"CONNECT"
            and not self._should_upgrade()
        )

    def _go_on_without_upgrade(self, rest: bytes) -> None:
        """Reads the same request again, without the header that asks for another protocol."""
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        again = b"\r\n".join([*lines, b"", rest])
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.data_received(again)

    # The end -----------------------------------------------------------------------------------------

    def _start_waiting(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self._limits.request_timeout_s, self._too_late)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_late(self) -> None:
        self._deadline = None
        if self._is_head and self._is_answering():
            self._start_waiting()  # the client may wait for the answer before it goes on
        elif self._is_new:
            self.transport.close()  # no request began
        else:
            seconds = self._limits.request_timeout_s
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"The request did not arrive within {seconds:g} s.")

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """Says what is wrong and hangs up. While an earlier request is being answered, says nothing and hangs
        up after that."""
        if self._is_answering() and not self._is_body_awaited():
            self.cycle.keep_alive = False
            return
        if self._is_head or not self._is_answered():
            self.transport.write(_answer(status, message))
        self.transport.close()

    def _is_answering(self) -> bool:
        return bool(self.pipeline) or (self.cycle is not None and not self.cycle.response_complete)

    def _is_answered(self) -> bool:
        return self.cycle is not None and self.cycle.response_complete

    def _is_body_awaited(self) -> bool:
        """Whether the one request that is being answered has not been read to its end."""
        return not self.pipeline and self.cycle.more_body and not self.cycle.response_started


class SocketConnection(WebSocketsSansIOProtocol):
    """A WebSocket whose client cannot make the server keep data that nobody will read."""

    config: DoorConfig

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._reader = ReaderTimer(transport, self.config.limits.max_reader_stall_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._reader.stop()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader.start()

    def resume_writing(self) -> None:
        self._reader.stop()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            # A head that HTTP lets through may be too much for the WebSocket's own parser, which does not
            # answer.
            self.transport.write(
                _answer(HTTPStatus.BAD_REQUEST, f"Not a WebSocket: {self.conn.handshake_exc}.")
            )
            self.transport.close()

    async def send(self, message: ASGISendEvent) -> None:
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            self.handshake_complete = (
                True  # refused with an answer of its own: uvicorn would log that as a fault
            )

    def handle_cont(self, event: Frame) -> None:
        if event.data or event.fin:  # empty pieces are dropped, however many come
            super().handle_cont(event)

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text" and not _is_text(b"".join(self.frames)):
            self.frames = []
            self.conn.send_close(CloseCode.INVALID_DATA)  # uvicorn does the same, and logs a fault
            self.handle_parser_exception()
            return
        super().send_receive_event_to_app()

    def handle_ping(self) -> None:
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()  # drops the pong: none is kept for a client that reads no answers


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _answer(status: HTTPStatus, message: str) -> bytes:
    body = error_body(InvalidRequestError(message))
    lines = (b"content-type: application/json", b"content-length: %d" % len(body), b"connection: close")
    return STATUS_LINE[status] + b"\r\n".join((*lines, b"", body))
