"""Whole answers that are large: sent piece by piece, each when the client has taken most of those before it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

from starlette.responses import Response
from starlette.types import Send

from router.doors.http.sse import StreamedAnswer

__all__ = ["LargeAnswer"]

_PIECE_BYTES = 262_144


async def _nothing_to_close() -> None:
    pass


class LargeAnswer(StreamedAnswer):
    """An answer whose body is in memory, and that a connection gets a little at a time.

    Args:
        pieces: the body.
        headers: headers beside its type and length.
        close: called at the end, whatever ended the answer.
    """

    media_type = "application/json"

    def __init__(
        self,
        pieces: Sequence[bytes],
        headers: Mapping[str, str] | None = None,
        close: Callable[[], Awaitable[None]] = _nothing_to_close,
    ) -> None:
        super().__init__({**(headers or {}), "content-length": str(sum(map(len, pieces)))}, close)
        self._pieces = pieces

    @classmethod
    def of(cls, response: Response) -> LargeAnswer:
        """Makes an answer that is sent in pieces of a whole one."""
        return cls([bytes(response.body)], response.headers)

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for part in self._parts():
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _parts(self) -> Iterator[memoryview]:
        for piece in self._pieces:
            for start in range(0, len(piece), _PIECE_BYTES):
                yield memoryview(piece)[start : start + _PIECE_BYTES]
