"""Bodies of the KServe v2 REST door: reads them, compressed or not, and makes those of answers."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Collection, Mapping
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from mooring.errors import InvalidRequestError, RequestTooLargeError, UnsupportedFieldError
from router.doors.http.json_body import read_json
from router.doors.http.json_route import read_body as read_whole_body

__all__ = ["compressed", "json_object", "json_response", "read_body", "refuse_others"]

_WINDOW_BITS = {"gzip": 31, "deflate": 15}  # zlib's words for the two formats
_LEVEL = 1  # zlib's fastest: somebody waits for the answer
_MAX_ACCEPT_CHARS = 1024  # of a header that says which encodings a client likes


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The body of a request, decompressed.

    Args:
        max_bytes: most bytes that the decompressed body may have.

    Raises:
        InvalidRequestError: the body is not compressed as its headers say.
        RequestTooLargeError: the body is larger than ``max_bytes`` once it is decompressed.
        UnsupportedFieldError: the body is compressed in another way than gzip and deflate.
    """
    body = await read_whole_body(request.receive)
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding == "identity":
        return body
    if encoding not in _WINDOW_BITS:
        raise UnsupportedFieldError(
            f"Content-Encoding '{encoding}' is not supported: send gzip, deflate or neither.",
            param="content-encoding",
        )
    # In a thread whatever its size: a few bytes may become the largest body, and zlib lets others run meanwhile.
    return await asyncio.to_thread(_decompressed, body, encoding, max_bytes)


def _decompressed(body: bytes, encoding: str, max_bytes: int) -> bytes:
    decompressor = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        plain = decompressor.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise InvalidRequestError(f"The body is not {encoding}: {error}.") from error
    if len(plain) > max_bytes:
        raise RequestTooLargeError(
            f"The body is larger than the {max_bytes} bytes that this server accepts, once it is decompressed."
        )
    if not decompressor.eof or decompressor.unused_data:
        raise InvalidRequestError(f"The body is not {encoding}: it ends too early or too late.")
    return plain


def compressed(response: Response, accept_encoding: str) -> Response:
    """Compresses an answer in the way that the client likes best; leaves it as it is if that is neither gzip
    nor deflate."""
    encoding = _best_encoding(accept_encoding)
    if encoding is not None:
        compressor = zlib.compressobj(_LEVEL, wbits=_WINDOW_BITS[encoding])
        response.body = compressor.compress(bytes(response.body)) + compressor.flush()
        response.headers["content-length"] = str(len(response.body))
        response.headers["content-encoding"] = encoding
    response.headers["vary"] = "accept-encoding"
    return response


def json_response(value: Any) -> Response:
    """An answer with a JSON body."""
    return Response(orjson.dumps(value), media_type="application/json")


def json_object(body: bytes, *, is_optional: bool = False) -> dict[str, Any]:
    """Reads a body that is a JSON object.

    Args:
        is_optional: whether an empty body counts as an empty object.

    Raises:
        InvalidRequestError: the body is something else, or has too many parts.
    """
    if is_optional and not body.strip():
        return {}
    value = read_json(body)
    if not isinstance(value, dict):
        raise InvalidRequestError("The body must be a JSON object.")
    return value


def refuse_others(given: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Raises ``UnsupportedFieldError`` if ``given`` has a field that is not ``known``.

    Args:
        where: the object whose fields these are, for the message.
    """
    for name in given:
        if name not in known:
            raise UnsupportedFieldError(f"Unexpected field '{name}' of {where}: leave it out.", param=name)


def _best_encoding(accepted: str) -> str | None:
    """The encoding that an Accept-Encoding header likes best, of those that we have; gzip if deflate is as
    good; None if it likes neither."""
    best, best_weight = None, 0.0
    for part in accepted[:_MAX_ACCEPT_CHARS].lower().split(","):
        name, _, parameter = part.partition(";")
        weight = _weight(parameter.strip())
        if name.strip() in _WINDOW_BITS and (
            weight > best_weight or (weight == best_weight > 0 and name.strip() == "gzip")
        ):
            best, best_weight = name.strip(), weight
    return best


def _weight(parameter: str) -> float:
    if not parameter.startswith("q="):
        return 1.0
    try:
        return float(parameter.removeprefix("q="))
    except ValueError:
        return 0.0
