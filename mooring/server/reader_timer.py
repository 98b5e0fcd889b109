"""Hangs up on a client of the HTTP door that does not read."""

from __future__ import annotations

import array
import asyncio
import fcntl
import termios

from router.request.reader_watch import ReaderWatch

__all__ = ["ReaderTimer"]

_LOOKS = 8  # during the time after which a client is given up


class ReaderTimer:
    """Looks at what is unread of one connection, while there is more than its transport wants.

    Args:
        transport: the connection, which is aborted when its client is given up: nothing more can be sent to it.
        max_stall_s: seconds without any progress after which that is.
    """

    def __init__(self, transport: asyncio.Transport, max_stall_s: float) -> None:
        self._transport = transport
        self._max_stall_s = max_stall_s
        self._loop = asyncio.get_running_loop()
        self._watch = ReaderWatch(max_stall_s)
        self._next: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """The transport has more than it wants."""
        if self._next is None:
            self._watch = ReaderWatch(self._max_stall_s)
            self._look()

    def stop(self) -> None:
        """The transport wants more, or the connection has ended."""
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _look(self) -> None:
        if self._watch.note(self._unread_bytes(), self._loop.time()):
            self._next = None
            self._transport.abort()
        else:
            self._next = self._loop.call_later(self._max_stall_s / _LOOKS, self._look)

    def _unread_bytes(self) -> int:
        """Bytes in the transport and in the system that the client has not acknowledged."""
        in_system = array.array("i", [0])
        connection = self._transport.get_extra_info("socket")
        try:
            fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, in_system)
        except (OSError, ValueError):  # it has just been closed
            in_system[0] = 0
        return self._transport.get_write_buffer_size() + in_system[0]
