"""The header check never crashes, and accepts nothing that the reference reader refuses."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize

from model_registry.safetensors_format import DTYPE_BYTES, encode_header, parse_header, read_header
from mooring.errors import ArtifactError

COMMON_DTYPES = sorted(set(DTYPE_BYTES) - {"U16", "U32", "U64"})
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(lambda n: n != "__metadata__")
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
tensor_maps = st.dictionaries(names, st.tuples(st.sampled_from(COMMON_DTYPES), shapes), max_size=5)


def file_of(tensors: dict[str, tuple[str, tuple[int, ...]]]) -> bytes:
    header = encode_header(tensors)
    (length,) = struct.unpack("<Q", header[:8])
    entries = json.loads(header[8:])
    ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
    assert len(header) == length + 8
    return header + b"\1" * max(ends, default=0)


def our_tensors(content: bytes) -> dict[str, tuple[str, tuple[int, ...]]]:
    with TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        path.write_bytes(content)
        return {name: (info.dtype, info.shape) for name, info in read_header(path).items()}


@settings(max_examples=100)
@given(tensor_maps)
def test_what_we_write_is_read_by_us_and_by_the_reference(
    tensors: dict[str, tuple[str, tuple[int, ...]]],
) -> None:
    content = file_of(tensors)
    assert our_tensors(content) == tensors
    assert {name: tuple(info["shape"]) for name, info in deserialize(content)} == {
        name: shape for name, (_, shape) in tensors.items()
    }


@settings(max_examples=300)
@given(tensor_maps, st.data())
def test_a_damaged_file_is_refused_or_just_as_good(
    tensors: dict[str, tuple[str, tuple[int, ...]]], data: st.DataObject
) -> None:
    content = bytearray(file_of(tensors))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(
        content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    )
    try:
        ours = our_tensors(damaged)
    except ArtifactError:
        return
    try:
        theirs = deserialize(damaged)
    except SafetensorError as error:
        raise AssertionError(f"we accept what the reference refuses: {error}") from error
    assert {name: tuple(info["shape"]) for name, info in theirs} == {
        n: shape for n, (_, shape) in ours.items()
    }


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200)
@given(
    st.dictionaries(
        names,
        st.fixed_dictionaries({"dtype": json_values, "shape": json_values, "data_offsets": json_values})
        | json_values,
        max_size=3,
    ),
    st.integers(0, 64),
)
def test_any_json_is_refused_with_a_reason_or_accepted(header: dict[str, object], data_bytes: int) -> None:
    try:
        tensors = parse_header("f", json.dumps(header).encode(), data_bytes)
    except ArtifactError:
        return
    assert sum(tensor.num_bytes for tensor in tensors.values()) == data_bytes


def test_a_name_that_is_half_a_character_is_refused() -> None:
    content = file_of({"xxxxxx": ("BF16", ())}).replace(b"xxxxxx", b"\\ud800")
    with pytest.raises(ArtifactError, match="not readable JSON"):
        our_tensors(content)
