"""WebSockets of the HTTP door: uvicorn's, with bounds on what a client can make the server keep."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState
from websockets.frames import CloseCode, Frame, Opcode

from mooring.server.door_config import DoorConfig, refusal
from mooring.server.reader_timer import ReaderTimer
from mooring.units import KIB

__all__ = ["SocketConnection"]

_FED_BYTES = 8 * KIB  # of frames, parsed at a time
_MAX_FRAME_BYTES = 256 * KIB  # that are sent; others get their turn after each


class SocketConnection(WebSocketsSansIOProtocol):
    """A WebSocket whose client cannot make the server keep data that nobody will read.

    Beside ASGI's own messages it sends ``{"type": "websocket.send", "pieces": [...]}``: text in UTF-8, of any size.
    """

    config: DoorConfig

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.on_lost: Callable[[], None] | None = None  # called once, when the connection is gone
        self._unfed = bytearray()  # bytes that have come and wait for the parser
        self._feeding: asyncio.Handle | None = None
        self._message = bytearray()  # pieces of a message
        self._num_unread_bytes = 0
        self._sending = asyncio.Lock()  # no message may begin within another
        self._message_task: asyncio.Task[None] | None = None  # that sends the present one

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
                refusal(HTTPStatus.BAD_REQUEST, f"Not a WebSocket: {self.conn.handshake_exc}.")
            )
            self.transport.close()

    def _note_unread(self, num_bytes: int) -> None:
        self.config.num_unread_bytes += num_bytes - self._num_unread_bytes
        self._num_unread_bytes = num_bytes

    async def send(self, message: ASGISendEvent) -> None:
        pieces: Sequence[bytes] | None = message.get("pieces")  # type: ignore[assignment]
        if pieces is not None:
            if sum(map(len, pieces)) <= _MAX_FRAME_BYTES:
                async with self._sending:
                    await self._send_frame(Opcode.TEXT, b"".join(pieces), is_last=True)
                return
            await self._sending.acquire()
            # Whoever sends may be cancelled; a message that was begun has to end before the next one.
            self._message_task = asyncio.ensure_future(self._send_frames(pieces))
            self._message_task.add_done_callback(self._message_sent)
            await asyncio.shield(self._message_task)
            return
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            self.handshake_complete = (
                True  # refused with an answer of its own: uvicorn would log that as a fault
            )

    def _message_sent(self, task: asyncio.Task[None]) -> None:
        self._sending.release()
        if not task.cancelled():
            task.exception()  # the sender has it, unless it was cancelled

    async def _send_frames(self, pieces: Sequence[bytes]) -> None:
        opcode = Opcode.TEXT
        for piece in pieces:
            for start in range(0, len(piece), _MAX_FRAME_BYTES):
                part = memoryview(piece)[start : start + _MAX_FRAME_BYTES]
                await self._send_frame(opcode, part, is_last=False)
                await asyncio.sleep(0)
                opcode = Opcode.CONT
        await self._send_frame(opcode, b"", is_last=True)

    async def _send_frame(self, opcode: Opcode, data: bytes | memoryview, *, is_last: bool) -> None:
        await self.writable.wait()
        if self.disconnected or self.close_sent:
            raise ClientDisconnected
        send = self.conn.send_text if opcode is Opcode.TEXT else self.conn.send_continuation
        try:
            send(data, is_last)
        except InvalidState:  # the client has said goodbye
            raise ClientDisconnected from None
        self.transport.write(b"".join(self.conn.data_to_send()))

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
