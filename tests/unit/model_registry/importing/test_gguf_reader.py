"""The reader believes no length and no number of a GGUF file."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType, GGUFReader
from support.gguf_files import Source, write_gguf

from model_registry.importing.gguf_reader import read_gguf
from mooring.errors import ArtifactError
from mooring.units import MIB

U8, STRING, ARRAY = 0, 8, 9


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def file_of(*parts: bytes, tensors: int = 0, keys: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + b"".join(parts)


def array(kind: int, count: int) -> bytes:
    return struct.pack("<IIQ", ARRAY, kind, count)


def tensor(name: bytes, sizes: tuple[int, ...], offset: int, kind: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


HOSTILE = {
    "array without end": (file_of(text(b"key"), array(U8, 1 << 60), keys=1), "items of arrays"),
    "array beyond the file": (file_of(text(b"key"), array(U8, 1 << 20), keys=1), "behind its end"),
    "nested arrays": (file_of(text(b"key"), array(ARRAY, 1) * 10_000, keys=1), "items of kind 9"),
    "items in many arrays": (
        file_of(*(text(b"%d" % i) + array(U8, 1 << 20) + bytes(1 << 20) for i in range(5)), keys=5),
        "items of arrays",
    ),
    "string without end": (
        file_of(text(b"key"), struct.pack("<IQ", STRING, 1 << 62), keys=1),
        "bytes in a string",
    ),
    "string beyond the file": (
        file_of(text(b"key"), struct.pack("<IQ", STRING, 99), keys=1),
        "behind its end",
    ),
    "keys": (file_of(keys=1 << 40), "would have 1099511627776 keys"),
    "keys beyond the file": (file_of(keys=100), "behind its end"),
    "tensors": (file_of(tensors=1 << 40), "would have 1099511627776 tensors"),
    "rank": (file_of(tensor(b"t", (1,) * 5, 0), tensors=1), "5 dimensions"),
    "tensor of too many bytes": (
        file_of(tensor(b"t", (1 << 63, 1 << 63), 0), tensors=1),
        "does not lie in it",
    ),
    "tensor of none": (file_of(tensor(b"t", (0, 4), 0), tensors=1), "does not lie in it"),
    "tensor beyond the file": (file_of(tensor(b"t", (4,), 1 << 63), tensors=1), "does not lie in it"),
    "a key twice": (file_of(*2 * [text(b"key") + struct.pack("<IB", U8, 1)], keys=2), "'key' twice"),
    "a tensor twice": (file_of(*2 * [tensor(b"t", (1,), 0)], bytes(64), tensors=2), "'t' twice"),
    "alignment": (
        file_of(text(b"general.alignment"), struct.pack("<IB", U8, 3), keys=1),
        "alignment is 3",
    ),
    "unknown value": (file_of(text(b"key"), struct.pack("<I", 77), keys=1), "kind 77"),
    "version": (file_of(version=1), "version 1"),
    "big-endian": (file_of(version=3 << 24), "big-endian"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_cannot_be_is_refused_before_anything_is_made_of_it(case: str, tmp_path: Path) -> None:
    content, reason = HOSTILE[case]
    path = tmp_path / "hostile.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactError, match=reason):
            read_gguf(path)
        assert tracemalloc.get_traced_memory()[1] < 200 * MIB
    finally:
        tracemalloc.stop()


def test_tensors_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """A small file must not become a folder of any size."""
    names = [b"t%d" % i for i in range(50)]
    content = file_of(*(tensor(name, (1024,), 0) for name in names), bytes(64 + 4096), tensors=len(names))
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(ArtifactError, match="overlap"):
        read_gguf(tmp_path / "m.gguf")


@pytest.mark.parametrize("kind", [GGMLQuantizationType.F32, GGMLQuantizationType.Q8_0])
def test_an_honest_file_is_read_as_the_library_reads_it(kind: GGMLQuantizationType, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", Source(kind=kind))
    ours, theirs = read_gguf(path), GGUFReader(path)
    fields = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert ours.keys == fields
    assert list(ours.tensors) == [each.name for each in theirs.tensors]
    for each in theirs.tensors:
        mine = ours.tensors[each.name]
        assert (mine.shape, mine.kind) == (tuple(each.shape.tolist()), each.tensor_type)
        assert mine.data.dtype == each.data.dtype
        assert (mine.data == each.data).all()
