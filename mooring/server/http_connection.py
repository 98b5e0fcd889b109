"""Connections of the HTTP door: uvicorn's, with bounds on what a client can make the server keep and wait
for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httptools
import uvicorn
from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame

from mooring.errors import InvalidRequestError, MooringError, status_of
from mooring.server.reader_timer import ReaderTimer
from mooring.units import KIB, MIB
from router.doors.http.errors import error_body

__all__ = ["DoorConfig", "HttpConnection", "HttpLimits", "SocketConnection", "answer_of"]

_FED_BYTES = 8 * KIB  # of WebSocket frames, parsed at a time


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bounds on what a client of the HTTP door can make it keep and wait for before a request is understood.

    Attributes:
        max_frame_bytes: most bytes of a WebSocket message; a larger one closes the WebSocket unread.
        max_head_bytes: most bytes of a request's line and headers together; also of trailers.
        request_timeout_s: seconds within which a request must arrive, and a new connection must begin with
            one.
        max_headers: most headers of a request.
        min_piece_bytes: least bytes that the pieces of a chunked body have on average, if they are more than
            ``max_small_pieces``: each costs the parser as much as a kilobyte.
        max_small_pieces: pieces of a body that may be as small as they like.
        max_pipelined: most requests of a connection that wait for the answer to an earlier one.
        max_unread_bytes: most bytes of half-sent WebSocket messages, of all connections together.
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
    min_piece_bytes: int = 32
    max_small_pieces: int = 4096
    max_pipelined: int = 16
    max_unread_bytes: int = 64 * MIB
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
        self.num_unread_bytes = 0  # of half-sent WebSocket messages


class HttpConnection(HttpToolsProtocol):
    """Hangs up on a client that sends a head without end or a request that never ends, and says what is wrong
    in an error object like all others."""

    config: DoorConfig

    def __init__(self, config: DoorConfig, *args: Any, **options: Any) -> None:
        super().__init__(config, *args, **options)
        self._limits = config.limits
        self.has_begun = False
        self.on_lost: Callable[[], None] | None = None  # called once, when the connection is gone
        self._num_unread_bytes = 0  # bytes since the parser last understood something
        self._num_pieces = 0  # of the present body
        self._num_body_bytes = 0
        self._is_new = True
        self._is_head = False
        self._wrong: tuple[HTTPStatus, str] | None = None
        self._deadline: asyncio.TimerHandle | None = None

    # The transport's side ----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._reader = ReaderTimer(transport, self._limits.max_reader_stall_s)
        self.has_begun = True
        self._start_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._reader.stop()
        super().connection_lost(exc)
        # Whoever still has the request in hand must not keep what came of its body.
        for cycle in (self.cycle, *(waiting for waiting, _ in self.pipeline)):
            if cycle is not None:
                cycle.body = bytearray()
        self.pipeline.clear()
        if self.on_lost is not None:
            self.on_lost()
            self.on_lost = None

    def handle_websocket_upgrade(self) -> None:
        super().handle_websocket_upgrade()
        socket = self.transport.get_protocol()
        assert isinstance(socket, SocketConnection)
        socket.on_lost, self.on_lost = self.on_lost, None

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
        if len(self.pipeline) >= self._limits.max_pipelined:
            most = self._limits.max_pipelined
            self._wrong = HTTPStatus.TOO_MANY_REQUESTS, f"At most {most} requests may wait on a connection."
            raise ValueError(self._wrong[1])
        super().on_message_begin()
        self._num_unread_bytes = 0
        self._num_pieces = self._num_body_bytes = 0
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
        self._num_pieces += 1
        self._num_body_bytes += len(body)
        if (
            self._num_pieces > self._limits.max_small_pieces
            and self._num_body_bytes < self._num_pieces * self._limits.min_piece_bytes
        ):
            self._wrong = (
                HTTPStatus.BAD_REQUEST,
                "The body comes in very many very small chunks: send larger ones.",
            )
            raise ValueError(self._wrong[1])
        super().on_body(body)

    def on_response_complete(self) -> None:
        if self.cycle.response_complete:  # otherwise it is a later one, which waits
            self.cycle.body = bytearray()  # what came of a body that nobody wanted
        super().on_response_complete()

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

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.on_lost: Callable[[], None] | None = None  # called once, when the connection is gone
        self._unfed = bytearray()  # bytes that have come and wait for the parser
        self._feeding: asyncio.Handle | None = None
        self._message = bytearray()  # pieces of a message
        self._num_unread_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._reader = ReaderTimer(transport, self.config.limits.max_reader_stall_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._reader.stop()
        super().connection_lost(exc)
        self._note_unread(0)
        self.frames = []
        self._message = self._unfed = bytearray()
        if self.on_lost is not None:
            self.on_lost()
            self.on_lost = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader.start()

    def resume_writing(self) -> None:
        self._reader.stop()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        self._unfed += data
        if self._feeding is None:
            self._feed()

    async def receive(self) -> ASGIReceiveEvent:
        message = await super().receive()
        if self._unfed and self._feeding is None and not self.read_paused:
            self._feed_later()
        return message

    def _feed(self) -> None:
        """Gives the parser a little of what has come: thousands of small frames come at a time, and others get their
        turn between them."""
        self._feeding = None
        piece = bytes(self._unfed[:_FED_BYTES])
        del self._unfed[:_FED_BYTES]
        self._feed_piece(piece)
        if not self._unfed or self.transport.is_closing():
            if not self.read_paused:
                self.transport.resume_reading()
        elif self.read_paused:
            pass  # goes on when the message that has come is taken
        else:
            self._feed_later()

    def _feed_later(self) -> None:
        self.transport.pause_reading()
        self._feeding = self.loop.call_soon(self._feed)

    def _feed_piece(self, data: bytes) -> None:
        super().data_received(data)
        self._note_unread(len(self.conn.reader.buffer) + len(self._message) + sum(map(len, self.frames)))
        is_too_much = self.config.num_unread_bytes > self.config.limits.max_unread_bytes
        if is_too_much and self._num_unread_bytes and self.handshake_complete and not self.close_sent:
            self.conn.fail(CloseCode.TRY_AGAIN_LATER, "too many messages are half sent")
            self.handle_parser_exception()
            self._note_unread(0)
            return
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            # A head that HTTP lets through may be too much for the WebSocket's own parser, which does not
            # answer.
            self.transport.write(
                _answer(HTTPStatus.BAD_REQUEST, f"Not a WebSocket: {self.conn.handshake_exc}.")
            )
            self.transport.close()

    def _note_unread(self, num_bytes: int) -> None:
        self.config.num_unread_bytes += num_bytes - self._num_unread_bytes
        self._num_unread_bytes = num_bytes

    async def send(self, message: ASGISendEvent) -> None:
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            self.handshake_complete = (
                True  # refused with an answer of its own: uvicorn would log that as a fault
            )

    def handle_cont(self, event: Frame) -> None:
        # uvicorn would keep each piece by itself, however small they are.
        self._message += b"".join(self.frames)
        self._message += event.data
        self.frames = []
        if event.fin:
            self.frames = [bytes(self._message)]
            self._message = bytearray()
            self.send_receive_event_to_app()

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


def answer_of(error: MooringError) -> bytes:
    """A whole answer that says what is wrong and that the connection ends."""
    return _answer_with(HTTPStatus(status_of(error).http), error)


def _answer(status: HTTPStatus, message: str) -> bytes:
    return _answer_with(status, InvalidRequestError(message))


def _answer_with(status: HTTPStatus, error: MooringError) -> bytes:
    body = error_body(error)
    lines = (b"content-type: application/json", b"content-length: %d" % len(body), b"connection: close")
    return STATUS_LINE[status] + b"\r\n".join((*lines, b"", body))
