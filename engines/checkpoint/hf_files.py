"""Finds the tensors of a Hugging Face checkpoint from its safetensors headers alone.

A safetensors file is eight bytes of header length, a JSON header that names every tensor with its dtype,
shape and byte range, and the tensors' bytes. Reading the header ourselves takes neither torch nor a copy of
the weights.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mooring.errors import ArtifactError
from mooring.strangers_json import parse_strangers_json, read_strangers_json

__all__ = ["StoredTensor", "read_headers"]

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
_MAX_HEADER_BYTES = 100 << 20
_MAX_RANK = 16
_MAX_SIZE = 1 << 48
_ELEMENT_BYTES: Mapping[str, int] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor in a safetensors file.

    Attributes:
        file: the file that holds the tensor.
        dtype: safetensors' name (``"BF16"``).
        shape: row-major.
        offset: position of the tensor's first byte in the file.
        num_bytes: size of the tensor.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


def read_headers(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the folder's ``model.safetensors``, or of the shards that its index names.

    Raises:
        ArtifactError: there are no safetensors, a header is broken, or the index does not match its shards.
    """
    index_path = folder / INDEX_NAME
    if not index_path.exists():
        if not (folder / SINGLE_NAME).exists():
            raise ArtifactError(f"no {SINGLE_NAME} and no {INDEX_NAME}; other kinds of weights are not read")
        return _read_header(folder / SINGLE_NAME)
    weight_map = read_strangers_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ArtifactError(f"{INDEX_NAME} has no weight_map")
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted({str(name) for name in weight_map.values()}):
        if Path(shard).name != shard:
            raise ArtifactError(f"{INDEX_NAME} names a shard outside its folder: {shard!r}")
        for name, tensor in _read_header(folder / shard).items():
            if weight_map.get(name) != shard:
                raise ArtifactError(f"{shard} holds {name}, which {INDEX_NAME} does not place there")
            tensors[name] = tensor
    missing = sorted(weight_map.keys() - tensors.keys())
    if missing:
        raise ArtifactError(f"{INDEX_NAME} names {missing[0]}, which its shard does not hold")
    return tensors


def _read_header(path: Path) -> dict[str, StoredTensor]:
    try:
        with path.open("rb") as file:
            file_bytes = os.fstat(file.fileno()).st_size
            header_bytes = int.from_bytes(file.read(8), "little")
            if header_bytes > min(_MAX_HEADER_BYTES, file_bytes - 8):
                raise ArtifactError(f"{path.name} is cut short or is not a safetensors file")
            header = parse_strangers_json(f"the header of {path.name}", file.read(header_bytes))
    except OSError as error:
        raise ArtifactError(f"{path.name} is unreadable: {error}") from error
    data_start = 8 + header_bytes
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        tensors[name] = tensor = _stored_tensor(path, name, entry, data_start)
        if tensor.offset + tensor.num_bytes > file_bytes:
            raise ArtifactError(f"{path.name} is cut short: {name} ends behind its end")
    return tensors


def _stored_tensor(path: Path, name: str, entry: Any, data_start: int) -> StoredTensor:
    try:
        dtype = str(entry["dtype"])
        shape = tuple(int(size) for size in entry["shape"])
        start, end = (int(offset) for offset in entry["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path.name}: the entry of {name} is unreadable: {error!r}") from error
    if (
        len(shape) > _MAX_RANK or max((*shape, start, end)) > _MAX_SIZE
    ):  # a product of such would take minutes
        raise ArtifactError(f"{path.name}: the shape of {name} is too large")
    if dtype not in _ELEMENT_BYTES:
        raise ArtifactError(f"{path.name}: {name} has dtype {dtype}, which is not supported")
    if start < 0 or min(shape, default=0) < 0 or end - start != math.prod(shape) * _ELEMENT_BYTES[dtype]:
        raise ArtifactError(f"{path.name}: the bytes of {name} do not match its shape and dtype")
    return StoredTensor(path, dtype, shape, data_start + start, end - start)
