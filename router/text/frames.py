"""Messages between the server and the process of a model's text.

A frame is a head (request id, kind, lengths), a JSON object and raw bytes. The server believes nothing that comes
back: a frame that is not as described here ends the process.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson

from mooring.units import MIB

__all__ = ["MAX_FRAME_BYTES", "REFUSED", "STARTED", "Frame", "FrameKind", "FrameReader", "pack_frame"]

MAX_FRAME_BYTES = 512 * MIB
STARTED, REFUSED = b".", b"!"  # answers of the starter, one byte each
_HEAD = struct.Struct("<QBII")


class FrameKind(enum.IntEnum):
    """Kind of a frame. The first three go to the process of a text, the others come back."""

    CALL = 1  # work for the process itself, one after the other
    LONG_CALL = 2  # work for a process of its own, beside the others
    CANCEL = 3  # end the process of a long call
    READY = 4  # the folder is read; the vocabulary
    RESULT = 5
    ERROR = 6  # a ``MooringError``
    DIED = 7  # the process of a long call ended without an answer


class Frame(NamedTuple):
    """A frame.

    Attributes:
        request_id: id that the server gave the call; 0 in a frame that belongs to none.
        content: the JSON object.
        raw: what is better not written as JSON.
    """

    request_id: int
    kind: FrameKind
    content: dict[str, Any]
    raw: bytes = b""


def pack_frame(request_id: int, kind: FrameKind, content: dict[str, Any], raw: bytes = b"") -> bytes:
    """The bytes of a frame.

    Raises:
        TypeError: the content cannot be written as JSON.
    """
    packed = orjson.dumps(content)
    return b"".join((_HEAD.pack(request_id, kind, len(packed), len(raw)), packed, raw))


class FrameReader:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._unread = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yields the frames that are complete with these bytes.

        Raises:
            ValueError: the bytes are no frame.
        """
        self._unread += data
        while len(self._unread) >= _HEAD.size:
            request_id, kind, content_bytes, raw_bytes = _HEAD.unpack_from(self._unread)
            end = _HEAD.size + content_bytes + raw_bytes
            if end > MAX_FRAME_BYTES:
                raise ValueError(f"a frame of {end} bytes")
            if len(self._unread) < end:
                return
            with memoryview(self._unread) as view:
                content = orjson.loads(view[_HEAD.size : _HEAD.size + content_bytes])
                raw = bytes(view[_HEAD.size + content_bytes : end])
            if not isinstance(content, dict):
                raise ValueError("a frame without an object")
            del self._unread[:end]
            yield Frame(request_id, FrameKind(kind), content, raw)
