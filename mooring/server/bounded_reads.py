"""Reads from a connection in pieces of a bounded size."""

from __future__ import annotations

import asyncio

from mooring.server.http_connection import HttpConnection
from mooring.units import KIB

__all__ = ["MAX_READ_BYTES", "BoundedReads"]

MAX_READ_BYTES = 64 * KIB  # as much of a body as uvicorn keeps before it ceases to read
_BUFFER = memoryview(bytearray(MAX_READ_BYTES))


class BoundedReads(asyncio.BufferedProtocol):
    """Reads for a connection, into a buffer that all of them share: what is read is parsed at once.

    By itself the event loop would read a quarter of a megabyte at a time, into new memory, before anybody could say
    that it is not wanted.
    """

    def __init__(self, connection: HttpConnection) -> None:
        self._connection = connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connection.connection_made(transport)  # type: ignore[arg-type]  # a stream's

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)

    def get_buffer(self, sizehint: int) -> memoryview:
        return _BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        self._connection.data_received(_BUFFER[:nbytes])

    def eof_received(self) -> None:
        self._connection.eof_received()

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()
