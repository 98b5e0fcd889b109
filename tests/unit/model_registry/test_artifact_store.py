"""The store takes what can be served, once, and refuses the rest with the reason."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from model_registry.checkpoint import check_folder
from model_registry.progress import Progress
from model_registry.store import ArtifactStore, StoredArtifact
from mooring.errors import ArtifactError, NotFoundError

Spoil = Callable[[Path], None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one file of weights and what goes with it."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text('{"model": {}}')
    (folder / "README.md").write_text("# A model")
    (folder / "convert.py").write_text("print('never run')")
    weights = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, dtype=np.float16)}
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.fixture
def sharded(folder: Path) -> Path:
    """The same in two shards with an index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number, (name, value) in enumerate(weights.items(), start=1):
        weight_map[name] = f"model-0000{number}-of-00002.safetensors"
        save_file({name: value}, folder / weight_map[name])
    write_index(folder, weight_map)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")


def enter(store: ArtifactStore, folder: Path, progress: Progress | None = None) -> StoredArtifact:
    return store.import_folder(folder, check_folder(folder), check_folder, progress)


def write_index(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def write_header(folder: Path, tensors: object, data: bytes) -> None:
    header = tensors if isinstance(tensors, bytes) else json.dumps(tensors).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)


def test_known_files_enter_under_their_digest(folder: Path, store: ArtifactStore) -> None:
    seen: list[tuple[str, int, int]] = []
    stored = enter(store, folder, lambda *state: seen.append(state))

    names = sorted(path.name for path in stored.path.iterdir())
    assert names == ["README.md", "SHA256SUMS", "config.json", "model.safetensors", "tokenizer.json"]
    assert stored.digest == hashlib.sha256((stored.path / "SHA256SUMS").read_bytes()).hexdigest()
    assert stored.path.name == stored.digest
    original = (folder / "model.safetensors").read_bytes()
    assert (stored.path / "model.safetensors").read_bytes() == original
    assert seen[-1] == ("copy", stored.num_bytes, stored.num_bytes)
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=stored.path, check=True, timeout=30)


def test_shards_enter_with_their_index(sharded: Path, store: ArtifactStore) -> None:
    stored = enter(store, sharded)
    assert len(list(stored.path.glob("model-*.safetensors"))) == 2
    assert (stored.path / "model.safetensors.index.json").exists()


def test_the_same_bytes_are_one_artifact(folder: Path, store: ArtifactStore, tmp_path: Path) -> None:
    first = enter(store, folder)
    assert enter(store, folder) == first
    (folder / "config.json").write_text('{"model_type": "llama" }')
    assert enter(store, folder) != first
    assert list((tmp_path / "store" / "tmp").iterdir()) == []


def test_stored_files_are_read_only_and_can_be_removed(folder: Path, store: ArtifactStore) -> None:
    stored = enter(store, folder)
    assert {oct(path.stat().st_mode & 0o777) for path in stored.path.iterdir()} == {"0o400"}
    store.remove(stored.digest)
    store.remove(stored.digest)
    with pytest.raises(NotFoundError):
        store.get(stored.digest)
    with pytest.raises(NotFoundError):
        store.get("../model")


def test_pickles_beside_safetensors_stay_outside(folder: Path, store: ArtifactStore) -> None:
    (folder / "training_args.bin").write_bytes(b"\x80\x04.")
    stored = enter(store, folder)
    assert not (stored.path / "training_args.bin").exists()


def test_a_link_inside_the_folder_is_followed(folder: Path, store: ArtifactStore) -> None:
    (folder / "weights").mkdir()
    (folder / "model.safetensors").rename(folder / "weights" / "w")
    (folder / "model.safetensors").symlink_to("weights/w")
    stored = enter(store, folder)
    assert not (stored.path / "model.safetensors").is_symlink()


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("a secret")
    path.chmod(0o600)
    return path


def replace_by_link(path: Path, target: Path) -> None:
    path.unlink()
    path.symlink_to(target)


def test_a_link_that_takes_a_files_place_after_the_check_leads_nowhere(
    folder: Path, store: ArtifactStore, secret: Path, tmp_path: Path
) -> None:
    names = check_folder(folder)
    replace_by_link(folder / "README.md", secret)
    with pytest.raises(ArtifactError, match=r"README\.md is a symlink that leaves the folder"):
        store.import_folder(folder, names, check_folder)
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]


def test_a_link_that_takes_a_files_place_during_the_copy_leads_nowhere(
    folder: Path, store: ArtifactStore, secret: Path, tmp_path: Path
) -> None:
    def swap(stage: str, done_bytes: int, total_bytes: int) -> None:
        if not (folder / "tokenizer.json").is_symlink():
            replace_by_link(folder / "tokenizer.json", secret)

    with pytest.raises(ArtifactError, match=r"tokenizer\.json is a symlink that leaves the folder"):
        enter(store, folder, swap)
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]


def test_a_folder_that_takes_the_folders_place_is_not_copied(
    folder: Path, store: ArtifactStore, secret: Path, tmp_path: Path
) -> None:
    def swap(stage: str, done_bytes: int, total_bytes: int) -> None:
        if folder.is_dir() and not folder.is_symlink():
            folder.rename(tmp_path / "away")
            folder.symlink_to(tmp_path / "other")

    (tmp_path / "other").mkdir()
    for name in check_folder(folder):
        (tmp_path / "other" / name).write_text("a secret")
    stored = enter(store, folder, swap)
    assert not [path for path in stored.path.iterdir() if "a secret" in path.read_text(errors="replace")]


def test_a_pipe_is_not_waited_for(folder: Path, store: ArtifactStore) -> None:
    names = check_folder(folder)
    (folder / "README.md").unlink()
    os.mkfifo(folder / "README.md")
    with pytest.raises(ArtifactError, match=r"README\.md is not a regular file"):
        store.import_folder(folder, names, check_folder)


def test_a_file_that_grows_ends_the_copy(folder: Path, store: ArtifactStore) -> None:
    def grow(stage: str, done_bytes: int, total_bytes: int) -> None:
        with (folder / "tokenizer.json").open("a") as file:
            file.write(" ")

    with pytest.raises(ArtifactError, match="a file has grown"):
        enter(store, folder, grow)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", ""])
def test_a_name_that_is_a_path_is_refused(
    name: str, folder: Path, store: ArtifactStore, secret: Path
) -> None:
    with pytest.raises(ArtifactError, match=r"not the name of a file|changed"):
        store.import_folder(folder, (name,), check_folder)


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def append(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"\0")


def replace_by_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def link_outside(folder: Path) -> None:
    (folder / "tokenizer_config.json").symlink_to("/etc/passwd")


def link_to_nothing(folder: Path) -> None:
    (folder / "tokenizer_config.json").symlink_to("gone")


def tensor(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


REFUSALS: dict[str, tuple[Spoil, str]] = {
    "pickle": (replace_by_pickle, "pytorch_model.bin is a pickle"),
    "symlink": (link_outside, "tokenizer_config.json is a symlink that leaves the folder"),
    "dangling": (link_to_nothing, "symlink to nothing"),
    "no config": (lambda f: (f / "config.json").unlink(), "lacks config.json"),
    "config not JSON": (
        lambda f: (f / "config.json").write_text("{") and None,
        "config.json is not readable",
    ),
    "config not an object": (lambda f: (f / "config.json").write_text("[]") and None, "not a JSON object"),
    "config not text": (lambda f: (f / "config.json").write_bytes(b"\xff") and None, "not readable JSON"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "lacks tokenizer.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "lacks model.safetensors"),
    "truncated": (truncate, "model.safetensors is truncated"),
    "too long": (append, "1 bytes after its last tensor"),
    "empty file": (lambda f: (f / "model.safetensors").write_bytes(b"") and None, "truncated"),
    "header beyond the file": (
        lambda f: (f / "model.safetensors").write_bytes(struct.pack("<Q", 999)) and None,
        "truncated: its header needs 999",
    ),
    "absurd header": (
        lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 64) and None,
        "not a safetensors file",
    ),
    "header not JSON": (lambda f: write_header(f, b"{nope", b""), "header is not readable JSON"),
    "header too deep": (lambda f: write_header(f, b"[" * 100_000, b""), "header is not readable JSON"),
    "header not an object": (lambda f: write_header(f, b"[]", b""), "not a JSON object"),
    "no tensors": (lambda f: write_header(f, {}, b""), "holds no tensors"),
    "overlap": (
        lambda f: write_header(f, {"a": tensor("U8", [4], 0, 4), "b": tensor("U8", [4], 2, 6)}, b"\0" * 6),
        "'b' overlaps",
    ),
    "gap": (
        lambda f: write_header(f, {"a": tensor("U8", [4], 0, 4), "b": tensor("U8", [2], 6, 8)}, b"\0" * 8),
        "2 bytes before tensor 'b' are no one's",
    ),
    "wrong size": (
        lambda f: write_header(f, {"a": tensor("F32", [4], 0, 4)}, b"\0" * 4),
        "'a' spans 4 bytes where",
    ),
    "negative": (
        lambda f: write_header(f, {"a": tensor("U8", [-4], 4, 0)}, b"\0" * 4),
        "not whole numbers",
    ),
    "sizes of thousands of digits": (
        lambda f: write_header(f, {"a": tensor("F32", [int("9" * 4000)] * 250, 0, 4)}, b"\0" * 4),
        "too many or too large",
    ),
    "rank": (
        lambda f: write_header(f, {"a": tensor("U8", [1] * 1000, 0, 1)}, b"\0"),
        "too many or too large",
    ),
    "lists without end": (
        lambda f: write_header(f, b'{"a": [' + b"[]," * 4_000_000, b""),
        "lists and objects",
    ),
    "config of lists": (
        lambda f: (f / "config.json").write_text('{"a": [' + "[" * 5000) and None,
        "config.json is not readable JSON",
    ),
    "large config": (
        lambda f: (f / "config.json").write_text('{"a": "' + "x" * (1 << 20) + '"}') and None,
        "config.json is too large",
    ),
    "template that is no text": (
        lambda f: (f / "chat_template.jinja").write_bytes(b"\xff") and None,
        "chat_template.jinja is not readable text",
    ),
    "large template": (
        lambda f: (f / "chat_template.jinja").write_text(" " * (1 << 20) + "x") and None,
        "chat_template.jinja is too large",
    ),
    "unknown dtype": (lambda f: write_header(f, {"a": tensor("Q2", [4], 0, 4)}, b"\0" * 4), "dtype 'Q2'"),
    "no offsets": (lambda f: write_header(f, {"a": {"dtype": "U8", "shape": [1]}}, b"\0"), "lacks dtype"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str, folder: Path, store: ArtifactStore, tmp_path: Path) -> None:
    spoil, reason = REFUSALS[case]
    spoil(folder)
    with pytest.raises(ArtifactError, match=reason):
        enter(store, folder)
    assert list((tmp_path / "store" / "artifacts").iterdir()) == []


SHARD_1 = "model-00001-of-00002.safetensors"
INDEX_REFUSALS: dict[str, tuple[object, str]] = {
    "traversal": ({"a": "../model.safetensors"}, "must lie in the folder"),
    "absolute": ({"a": "/etc/model.safetensors"}, "must lie in the folder"),
    "backslash": ({"a": "..\\model.safetensors"}, "must lie in the folder"),
    "pickle": ({"a": "pytorch_model-00001-of-00002.bin"}, "not a safetensors file"),
    "missing shard": (
        {"a": "model-00007-of-00007.safetensors"},
        "model-00007-of-00007.safetensors is missing",
    ),
    "wrong shard": ({"a": SHARD_1, "b": SHARD_1}, f"'b' in {SHARD_1}, which does not have it"),
    "no map": (None, "no weight_map"),
    "not names": ({"a": 5}, "not a safetensors file"),
}


@pytest.mark.parametrize("case", INDEX_REFUSALS)
def test_index_refusals(case: str, sharded: Path, store: ArtifactStore) -> None:
    weight_map, reason = INDEX_REFUSALS[case]
    write_index(sharded, weight_map)
    with pytest.raises(ArtifactError, match=reason):
        enter(store, sharded)


def test_a_tensor_in_two_shards_is_refused(sharded: Path, store: ArtifactStore) -> None:
    second = "model-00002-of-00002.safetensors"
    save_file({"a": np.ones(1, dtype=np.float32), "b": np.ones(1, dtype=np.float32)}, sharded / second)
    with pytest.raises(ArtifactError, match="'a' is in both"):
        enter(store, sharded)


def test_a_path_that_is_no_folder_is_refused(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not a folder"):
        enter(store, tmp_path / "nothing")


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path: Path) -> None:
    root = tmp_path / "store"
    store = ArtifactStore(root)
    (root / "tmp" / "dead").mkdir()
    (root / "tmp" / "dead" / "half").write_text("x")
    with store.scratch() as living:
        ArtifactStore(root)
        assert [path.name for path in (root / "tmp").iterdir()] == [living.name]
    assert list((root / "tmp").iterdir()) == []


def test_a_scratch_folder_is_locked_by_its_owner(store: ArtifactStore) -> None:
    with store.scratch() as folder:
        other = os.open(folder, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(other)


def test_a_packed_artifact_leaves_its_place_whole(store: ArtifactStore, tmp_path: Path) -> None:
    folder = tmp_path / "store" / "packed" / "key"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(b"w")
    store.remove_packed("../packed/key")
    assert folder.is_dir()
    store.remove_packed("key")
    store.remove_packed("key")
    assert not folder.exists()
