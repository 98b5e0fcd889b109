"""The safetensors file format: headers read with distrust, and headers written.

A file is an 8-byte little-endian header length, that many bytes of JSON, and the tensors' bytes::

    {"__metadata__": {...}, "name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, ...}

Offsets count from the end of the header. The promises of the format are checked here and not assumed: every
tensor has the size that its dtype and shape give, the tensors lie one after the other without overlap or
gap, and the file ends where the last tensor does, so a truncated download cannot pass.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mooring.errors import ArtifactError
from mooring.strangers_json import parse_strangers_json
from mooring.units import MIB

__all__ = ["DTYPE_BYTES", "TensorInfo", "encode_header", "parse_header", "read_header"]

DTYPE_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
}
MAX_HEADER_BYTES = 100 * MIB  # the reference reader's own limit
LENGTH_BYTES = 8
# Sizes of thousands of digits are readable too, and their product would take minutes.
MAX_RANK = 16
MAX_SIZE = 1 << 48


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a file. ``begin`` and ``end`` are byte offsets from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def num_bytes(self) -> int:
        return self.end - self.begin


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Reads the tensors of a safetensors file by name, and checks all that the file's bytes allow.

    Raises:
        ArtifactError: the file is truncated, its tensors overlap, or it is not a safetensors file; the
            message says which.
    """
    file_bytes = path.stat().st_size
    if file_bytes < LENGTH_BYTES:
        raise ArtifactError(f"{path.name} is truncated: {file_bytes} bytes cannot hold a safetensors header")
    with path.open("rb") as file:
        (header_bytes,) = struct.unpack("<Q", file.read(LENGTH_BYTES))
        if header_bytes > MAX_HEADER_BYTES:
            raise ArtifactError(
                f"{path.name} is not a safetensors file: its header would be {header_bytes} bytes"
            )
        if LENGTH_BYTES + header_bytes > file_bytes:
            raise ArtifactError(
                f"{path.name} is truncated: its header needs {header_bytes} bytes, "
                f"{file_bytes - LENGTH_BYTES} are there"
            )
        header = file.read(header_bytes)
    return parse_header(path.name, header, file_bytes - LENGTH_BYTES - header_bytes)


def parse_header(file_name: str, header: bytes, data_bytes: int) -> dict[str, TensorInfo]:
    """Checks a header against the number of bytes that follow it.

    Raises:
        ArtifactError: the header is malformed or does not describe ``data_bytes`` bytes exactly.
    """
    what = f"{file_name}: the safetensors header"
    raw = parse_strangers_json(what, header)
    try:
        json.dumps(raw, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # an escape of half a character, which is no text
        raise ArtifactError(f"{what} is not readable JSON: {error}") from error
    raw.pop("__metadata__", None)
    tensors = {name: _parse_tensor(file_name, name, entry) for name, entry in raw.items()}
    _check_contiguous(file_name, tensors, data_bytes)
    return tensors


def _parse_tensor(file_name: str, name: str, entry: Any) -> TensorInfo:
    where = f"{file_name}: tensor {name!r}"
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{where} lacks dtype, shape or data_offsets") from error
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise ArtifactError(f"{where} has dtype {dtype!r}, which is not supported")
    if not isinstance(shape, list) or len(shape) > MAX_RANK or not all(map(_is_size, (*shape, begin, end))):
        raise ArtifactError(
            f"{where} has a shape or offsets that are not whole numbers, or too many or too large ones"
        )
    num_bytes = math.prod(shape) * DTYPE_BYTES[dtype]
    if end - begin != num_bytes:
        raise ArtifactError(
            f"{where} spans {end - begin} bytes where {dtype}{shape} needs {num_bytes}: the file is corrupt"
        )
    return TensorInfo(dtype, tuple(shape), begin, end)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_SIZE


def _check_contiguous(file_name: str, tensors: Mapping[str, TensorInfo], data_bytes: int) -> None:
    expected = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin < expected:
            raise ArtifactError(f"{file_name}: tensor {name!r} overlaps the one before it")
        if tensor.begin > expected:
            raise ArtifactError(
                f"{file_name}: {tensor.begin - expected} bytes before tensor {name!r} are no one's"
            )
        expected = tensor.end
    if expected > data_bytes:
        raise ArtifactError(
            f"{file_name} is truncated: its tensors need {expected} bytes, {data_bytes} are there"
        )
    if expected < data_bytes:
        raise ArtifactError(f"{file_name} has {data_bytes - expected} bytes after its last tensor")


def encode_header(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """The length and the header of a file whose tensors follow in this order without gaps.

    Args:
        tensors: (dtype, shape) by name; dtypes as in ``DTYPE_BYTES``.
    """
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        end = offset + math.prod(shape) * DTYPE_BYTES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)  # the format aligns the data by padding with spaces
    return struct.pack("<Q", len(text)) + text
