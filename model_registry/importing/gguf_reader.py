"""The GGUF file format, read with distrust.

::

    "GGUF"  version: u32  number of tensors: u64  number of keys: u64
    keys:     name: string  kind: u32  value
    tensors:  name: string  rank: u32  sizes: u64 each, the fastest first  kind: u32  offset: u64
    zeros up to the alignment, then the tensors' bytes, which offsets count from

A string is its length (u64) and so many bytes of UTF-8. An array is the kind of its items (u32), their number (u64)
and the items. Every length and number is checked against the bytes that are left, and against what honest files have,
before anything is made of it. The file is mapped, so its weights take no memory.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import quant_shape_to_byte_shape
from numpy.typing import NDArray

from mooring.errors import ArtifactError
from mooring.units import KIB, MIB

__all__ = ["GgufFile", "GgufTensor", "read_gguf"]

_VERSIONS = (2, 3)
_MAX_RANK = 4  # llama.cpp's own
_MAX_KEYS = 10_000
_MAX_TENSORS = 100_000
_MAX_ITEMS = 4_000_000  # of all arrays together; the largest published vocabularies have a quarter of it
_MAX_ITEM_BYTES = 16 * KIB  # of a string in an array: a token, or two that are merged
_MAX_STRING_BYTES = 1 * MIB
_DEFAULT_ALIGNMENT = 32

_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}  # by kind
_STRING, _ARRAY = 8, 9
_PLAIN = {
    GGMLQuantizationType.F16: np.float16,
    GGMLQuantizationType.F32: np.float32,
    GGMLQuantizationType.F64: np.float64,
    GGMLQuantizationType.I8: np.int8,
    GGMLQuantizationType.I16: np.int16,
    GGMLQuantizationType.I32: np.int32,
    GGMLQuantizationType.I64: np.int64,
}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor of a file.

    Attributes:
        shape: sizes in elements, the fastest first, as the file lists them.
        kind: how the elements are quantized.
        data: the tensor in the file, the slowest dimension first; rows of bytes if it is quantized.
    """

    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    data: NDArray[Any]


@dataclass(frozen=True, slots=True)
class GgufFile:
    """The keys and tensors of a file."""

    keys: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def read_gguf(path: Path) -> GgufFile:
    """Reads the header of a file and maps its tensors.

    Raises:
        ArtifactError: the file is not a GGUF file, or its header cannot be believed; the message says what is wrong.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ArtifactError(f"{path.name} is not a GGUF file")
    data: NDArray[np.uint8] = np.memmap(path, np.uint8, "r")
    return _Header(path.name, data).read()


class _Header:
    """The header of one file, read from its beginning to its end."""

    def __init__(self, name: str, data: NDArray[np.uint8]) -> None:
        self._name = name
        self._data = data
        self._bytes = data.data
        self._at = len(b"GGUF")
        self._num_items = 0

    def read(self) -> GgufFile:
        version = self._number("I")
        if version & 0xFFFF == 0:
            raise ArtifactError(f"{self._name} is a big-endian GGUF file, which is not supported")
        if version not in _VERSIONS:
            raise ArtifactError(f"{self._name} is a GGUF file of version {version}, which is not supported")
        num_tensors = self._count("tensors", _MAX_TENSORS)
        num_keys = self._count("keys", _MAX_KEYS)
        keys: dict[str, Any] = {}
        for _ in range(num_keys):
            key = self._string(_MAX_ITEM_BYTES)
            if key in keys:
                raise self._corrupt(f"it has {key!r} twice")
            keys[key] = self._value(self._number("I"))
        alignment = keys.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self._corrupt(f"its alignment is {alignment!r}")
        return GgufFile(keys, self._tensors(num_tensors, alignment))

    def _tensors(self, num_tensors: int, alignment: int) -> dict[str, GgufTensor]:
        entries: dict[str, tuple[tuple[int, ...], GGMLQuantizationType, int]] = {}
        for _ in range(num_tensors):
            name = self._string(_MAX_ITEM_BYTES)
            if name in entries:
                raise self._corrupt(f"it has tensor {name!r} twice")
            rank = self._count("dimensions", _MAX_RANK, "I")
            shape = tuple(self._number("Q") for _ in range(rank))
            entries[name] = (shape, GGMLQuantizationType(self._number("I")), self._number("Q"))
        start = -(-self._at // alignment) * alignment
        tensors = {name: self._tensor(name, *entry, start) for name, entry in entries.items()}
        # Tensors that share bytes would become many times as many when they are written apart.
        if sum(tensor.data.nbytes for tensor in tensors.values()) > len(self._data):
            raise self._corrupt("its tensors overlap")
        return tensors

    def _tensor(
        self, name: str, shape: tuple[int, ...], kind: GGMLQuantizationType, offset: int, start: int
    ) -> GgufTensor:
        block_elements, block_bytes = GGML_QUANT_SIZES[kind]
        num_bytes = math.prod(shape) // block_elements * block_bytes
        begin = start + offset
        if not num_bytes or begin + num_bytes > len(self._data):
            raise self._corrupt(f"tensor {name!r} of {num_bytes} bytes does not lie in it")
        rows = tuple(reversed(shape))
        data = self._data[begin : begin + num_bytes]
        if kind in _PLAIN:
            return GgufTensor(shape, kind, data.view(_PLAIN[kind]).reshape(rows))
        return GgufTensor(shape, kind, data.reshape(quant_shape_to_byte_shape(rows, kind)))

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind == _STRING:
            return self._string(_MAX_STRING_BYTES)
        if kind != _ARRAY:
            raise self._corrupt(f"it has a value of kind {kind}")
        item_kind = self._number("I")
        if item_kind not in _SCALARS and item_kind != _STRING:
            raise self._corrupt(f"it has an array of items of kind {item_kind}")  # of arrays, for one
        num_items = self._count("items of arrays", _MAX_ITEMS - self._num_items)
        self._num_items += num_items
        if item_kind == _STRING:
            return [self._string(_MAX_ITEM_BYTES) for _ in range(num_items)]
        return list(self._numbers(_SCALARS[item_kind], num_items))

    def _count(self, what: str, at_most: int, form: str = "Q") -> int:
        count = int(self._number(form))
        if count > at_most:
            raise self._corrupt(f"it would have {count} {what}, and {at_most} are the most that are read")
        return count

    def _number(self, form: str) -> Any:
        return self._numbers(form, 1)[0]

    def _numbers(self, form: str, count: int) -> tuple[Any, ...]:
        numbers = struct.Struct(f"<{count}{form}")
        return numbers.unpack(self._take(numbers.size))

    def _string(self, max_bytes: int) -> str:
        return str(self._take(self._count("bytes in a string", max_bytes)), "utf-8")

    def _take(self, num_bytes: int) -> memoryview:
        begin = self._at
        self._at += num_bytes
        if self._at > len(self._data):
            raise self._corrupt("its header goes on behind its end")
        return self._bytes[begin : self._at]

    def _corrupt(self, reason: str) -> ArtifactError:
        return ArtifactError(f"{self._name} is truncated or corrupt: {reason}")
