"""Tensors of the KServe v2 protocol: their datatypes, and their values as bytes and as Python objects."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mooring.errors import InvalidRequestError

__all__ = ["DATATYPES", "MAX_VALUES", "Tensor", "check_tensor", "decode_tensor", "encode_values", "size_of"]

MAX_VALUES = 1024
"""Most values of one input, whatever it is; no list that is served may be as long."""

_LENGTH = struct.Struct("<I")  # before each element of BYTES
_FORMATS = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "BF16": "H",
    "FP32": "f",
    "FP64": "d",
}
DATATYPES = (*_FORMATS, "BYTES")
"""Every datatype of the protocol."""

_MAX_DIMS = 16
_MAX_DIM = (1 << 63) - 1  # the protocol's; JSON could name numbers that are too long to print


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a request or an answer.

    Attributes:
        datatype: one of ``DATATYPES``.
        shape: each dimension is 0 or more; their product is the number of values.
        values: the values in a flat list, the last dimension varying fastest: bool, int, float, or bytes for
            ``BYTES``.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: Sequence[Any]


def decode_tensor(name: str, datatype: str, shape: Sequence[int], raw: bytes) -> Tensor:
    """Makes a tensor from its bytes, which are little-endian and dense; each element of ``BYTES`` comes after
    its length in four bytes.

    Raises:
        InvalidRequestError: datatype, shape and bytes do not agree, or there are more than ``MAX_VALUES`` values;
            the message has the tensor's name.
    """
    num_values = _num_values(name, datatype, shape)
    if datatype == "BYTES":
        values: Sequence[Any] = _split_bytes(name, raw, num_values + 1)
        _check_count(name, shape, num_values, len(values))
        return Tensor(name, datatype, tuple(shape), values)
    code = _FORMATS[datatype]
    num_bytes = num_values * struct.calcsize(code)
    if len(raw) != num_bytes:
        raise _error(
            name, f"shape {list(shape)} of {datatype} is {num_bytes} bytes, and {len(raw)} bytes were sent"
        )
    values = struct.unpack(f"<{num_values}{code}", raw)
    return Tensor(name, datatype, tuple(shape), _widened(values) if datatype == "BF16" else values)


def check_tensor(name: str, datatype: str, shape: Sequence[int], values: Sequence[Any]) -> Tensor:
    """Makes a tensor from values that came as such (typed contents, JSON). ``BYTES`` may come as text.

    Raises:
        InvalidRequestError: as ``decode_tensor``.
    """
    _check_count(name, shape, _num_values(name, datatype, shape), len(values))
    if datatype == "BYTES":
        return Tensor(name, datatype, tuple(shape), [_as_bytes(name, value) for value in values])
    if datatype in ("FP16", "BF16", "FP32", "FP64"):
        fits = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    elif datatype == "BOOL":
        fits = all(isinstance(value, bool) for value in values)
    else:
        low, high = _integer_range(datatype)
        fits = all(type(value) is int and low <= value <= high for value in values)
    if not fits:
        raise _error(name, f"a value is no {datatype}")
    return Tensor(name, datatype, tuple(shape), values)


def encode_values(datatype: str, values: Sequence[Any]) -> bytes:
    """The bytes of a tensor's values, as ``decode_tensor`` reads them."""
    if datatype == "BYTES":
        return b"".join(_LENGTH.pack(len(value)) + value for value in values)
    if datatype == "BF16":
        return struct.pack(f"<{len(values)}H", *(_narrowed(value) for value in values))
    return struct.pack(f"<{len(values)}{_FORMATS[datatype]}", *values)


def size_of(tensor: Tensor) -> int:
    """About how many bytes its values take in an answer."""
    if tensor.datatype == "BYTES":
        return sum(map(len, tensor.values))
    return 8 * len(tensor.values)


def _num_values(name: str, datatype: str, shape: Sequence[int]) -> int:
    if datatype not in DATATYPES:
        raise _error(name, f"there is no datatype {datatype!r}")
    if len(shape) > _MAX_DIMS or not all(0 <= dim <= _MAX_DIM for dim in shape):
        raise _error(
            name, f"a shape has at most {_MAX_DIMS} dimensions, and each is at least 0 and at most {_MAX_DIM}"
        )
    num_values = math.prod(shape)
    if num_values > MAX_VALUES:
        raise _error(name, f"no input here has more than {MAX_VALUES} elements")
    return num_values


def _check_count(name: str, shape: Sequence[int], num_values: int, num_sent: int) -> None:
    if num_sent != num_values:
        raise _error(name, f"shape {list(shape)} has {num_values} elements, and not as many were sent")


def _split_bytes(name: str, raw: bytes, most: int) -> list[bytes]:
    """The elements, up to so many."""
    values: list[bytes] = []
    at = 0
    while at < len(raw) and len(values) < most:
        start = at + _LENGTH.size
        if start > len(raw):
            raise _error(name, "its last element's length is cut off")
        at = start + _LENGTH.unpack_from(raw, start - _LENGTH.size)[0]
        if at > len(raw):
            raise _error(name, "an element is longer than the bytes that were sent")
        values.append(raw[start:at])
    return values


def _as_bytes(name: str, value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise _error(name, "a value is no BYTES")
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise _error(name, "its text holds half of a surrogate pair, which is no character") from error


def _integer_range(datatype: str) -> tuple[int, int]:
    num_bits = 8 * struct.calcsize(_FORMATS[datatype])
    if datatype.startswith("U"):
        return 0, (1 << num_bits) - 1
    return -(1 << num_bits - 1), (1 << num_bits - 1) - 1


def _widened(halves: Sequence[int]) -> tuple[float, ...]:
    """The numbers of BF16 values, each of which is the upper half of an FP32."""
    return struct.unpack(
        f"<{len(halves)}f", struct.pack(f"<{len(halves)}I", *(half << 16 for half in halves))
    )


def _narrowed(value: float) -> int:
    """The bits of the nearest BF16, ties to even; NaN stays NaN."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    if math.isnan(value):
        return int(bits >> 16 | 0x40)
    return int(bits + 0x7FFF + (bits >> 16 & 1) >> 16)


def _error(name: str, what: str) -> InvalidRequestError:
    return InvalidRequestError(f"Invalid tensor '{name}': {what}.", param=name)
