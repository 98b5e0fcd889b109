"""Headers of checkpoints whose sizes nobody could multiply."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from engines.checkpoint.hf_files import read_headers
from mooring.errors import ArtifactError


def write(folder: Path, header: bytes) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))


@pytest.mark.parametrize("shape", [[int("9" * 4000)] * 250, [1] * 100_000])
def test_a_shape_is_bounded_before_it_is_multiplied(shape: list[int], tmp_path: Path) -> None:
    write(tmp_path, json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}).encode())
    with pytest.raises(ArtifactError, match="the shape of a is too large"):
        read_headers(tmp_path)


@pytest.mark.parametrize("header", [b'{"a": ' + b"[" * 100_000, b'{"a": [' + b"[]," * 4_000_000])
def test_nesting_and_lists_are_bounded(header: bytes, tmp_path: Path) -> None:
    write(tmp_path, header)
    with pytest.raises(ArtifactError, match=r"the header of model\.safetensors"):
        read_headers(tmp_path)
