"""Settings and limits of the HTTP door's connections, and the answers that they give by themselves."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from mooring.errors import InvalidRequestError, MooringError, status_of
from mooring.units import MIB
from router.doors.http.errors import error_body

__all__ = ["DoorConfig", "HttpLimits", "answer_of", "refusal"]


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bounds on what a client of the HTTP door can make it keep and wait for before a request is understood.

    Attributes:
        max_frame_bytes: most bytes of a WebSocket message; a larger one closes the WebSocket unread.
        max_head_bytes: most bytes of a request's line and headers together; also of trailers.
        request_timeout_s: seconds within which a request must arrive, and a new connection must begin with
            one.
        max_reader_stall_s: seconds without any progress after which a client is given up that does not read what is
            sent to it. It needs to answer no ping of a WebSocket in time: a slow one finds that behind all else.
        max_headers: most headers of a request.
        min_piece_bytes: least bytes that the pieces of a chunked body have on average, if they are more than
            ``max_small_pieces``: each costs the parser as much as a kilobyte.
        max_small_pieces: pieces of a body that may be as small as they like.
        max_pipelined: most requests of a connection that wait for the answer to an earlier one.
        max_unread_bytes: most bytes of half-sent WebSocket messages, of all connections together.
        keep_alive_s: seconds for which a connection may rest between requests. Longer than clients and
            proxies let theirs rest: otherwise they would send requests into a connection that is just being
            closed.
    """

    max_frame_bytes: int
    max_head_bytes: int
    request_timeout_s: float
    max_reader_stall_s: float
    max_headers: int = 100
    min_piece_bytes: int = 32
    max_small_pieces: int = 4096
    max_pipelined: int = 16
    max_unread_bytes: int = 64 * MIB
    keep_alive_s: int = 75


class DoorConfig(uvicorn.Config):
    """uvicorn's settings, and the limits of its connections."""

    def __init__(self, app: Any, limits: HttpLimits, **options: Any) -> None:
        super().__init__(
            app,
            ws_max_size=limits.max_frame_bytes,
            ws_ping_timeout=None,
            timeout_keep_alive=limits.keep_alive_s,
            **options,
        )
        self.limits = limits
        self.num_unread_bytes = 0  # of half-sent WebSocket messages


def answer_of(error: MooringError) -> bytes:
    """A whole answer that says what is wrong and that the connection ends."""
    return _answer_with(HTTPStatus(status_of(error).http), error)


def refusal(status: HTTPStatus, message: str) -> bytes:
    """A whole answer with this status and sentence, at which the connection ends."""
    return _answer_with(status, InvalidRequestError(message))


def _answer_with(status: HTTPStatus, error: MooringError) -> bytes:
    body = error_body(error)
    lines = (b"content-type: application/json", b"content-length: %d" % len(body), b"connection: close")
    return STATUS_LINE[status] + b"\r\n".join((*lines, b"", body))
