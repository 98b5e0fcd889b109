"""Connections of the HTTP door: uvicorn's, with bounds on what a client can make the server keep and wait
for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from mooring.server.door_config import DoorConfig, refusal
from mooring.server.reader_timer import ReaderTimer
from mooring.server.socket_connection import SocketConnection

__all__ = ["HttpConnection"]


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
        self._running: RequestResponseCycle | None = None  # the request that is being answered, or was last
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
        # uvicorn tells only the last of several requests. Whoever still has one in hand must not keep what came of
        # its body.
        for cycle in (self._running, *(waiting for waiting, _ in self.pipeline)):
            if cycle is not None:
                cycle.disconnected = not cycle.response_complete
                cycle.message_event.set()
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

    def data_received(self, data: bytes | memoryview) -> None:
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
            if self.pipeline:
                # uvicorn ceases to read while a request waits, and would not notice that the client leaves; few may
                # wait (``max_pipelined``).
                self.flow.resume_reading()
            if self._running is None or self._running.response_complete:
                self._running = self.cycle

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
        assert self._running is not None
        self._running.body = bytearray()  # what came of a body that nobody wanted
        if self.pipeline:
            self._running = self.pipeline[-1][0]
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
        if self._is_answering() and self.parser.should_upgrade() and self._should_upgrade():
            return HTTPStatus.BAD_REQUEST, "A WebSocket begins when all earlier requests are answered."
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

    def _go_on_without_upgrade(self, rest: bytes | memoryview) -> None:
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
            self.transport.write(refusal(status, message))
        self.transport.close()

    def _is_answering(self) -> bool:
        return bool(self.pipeline) or (self.cycle is not None and not self.cycle.response_complete)

    def _is_answered(self) -> bool:
        return self.cycle is not None and self.cycle.response_complete

    def _is_body_awaited(self) -> bool:
        """Whether the one request that is being answered has not been read to its end."""
        return not self.pipeline and self.cycle.more_body and not self.cycle.response_started
