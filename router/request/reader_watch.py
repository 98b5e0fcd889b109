"""When a client that does not read its answer is given up."""

from __future__ import annotations

from mooring.errors import DeadlineExceededError

__all__ = ["ReaderWatch", "SlowReaderError"]


class SlowReaderError(DeadlineExceededError):
    """The client took nothing of its answer for too long."""

    code = "reader_too_slow"

    def __init__(self, max_stall_s: float) -> None:
        super().__init__(f"Nothing of the answer was read for {max_stall_s:g} s (limits.max_reader_stall_s).")


class ReaderWatch:
    """Watches one client that an answer waits for. However slow it is, it is given up only if it takes nothing at all
    for so long.

    Args:
        max_stall_s: seconds.
    """

    def __init__(self, max_stall_s: float) -> None:
        self._max_stall_s = max_stall_s
        self._unread_bytes = 0
        self._moved_s = 0.0

    def note(self, unread_bytes: int, now_s: float) -> bool:
        """Takes a look at how much is unread; returns whether the client is to be given up."""
        if not self._unread_bytes or unread_bytes < self._unread_bytes:
            self._moved_s = now_s
        self._unread_bytes = unread_bytes
        return unread_bytes > 0 and now_s - self._moved_s >= self._max_stall_s
