"""Checks whether a Hugging Face folder may enter the store, and says why if it may not.

Only top-level files that are known by name are ever taken, so anything else in a folder (code, other formats,
pickles beside safetensors) stays outside. Nothing is executed or unpickled.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from model_registry.safetensors_format import read_header
from mooring.errors import ArtifactError
from mooring.strangers_json import read_strangers_json
from mooring.units import KIB, MIB, format_bytes

__all__ = ["FILE_PATTERNS", "INDEX_NAME", "check_folder", "read_license", "refuse_pickles"]

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
TEMPLATE_NAME = "chat_template.jinja"
NOTE_PATTERNS = ("LICENSE*", "README*")
FILE_PATTERNS = (  # beside the weights
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    TEMPLATE_NAME,
    *NOTE_PATTERNS,
)
REQUIRED_NAMES = ("config.json", "tokenizer.json")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
LICENSE_LINE = re.compile(r"^license:\s*([\w.+-]{1,64})\s*$", re.MULTILINE)
MAX_OTHER_TEXT_BYTES = 16 * MIB
MAX_TEXT_BYTES = {  # some times what the largest published ones have
    "tokenizer.json": 128 * MIB,
    "config.json": 1 * MIB,
    "generation_config.json": 64 * KIB,
    TEMPLATE_NAME: 1 * MIB,
}
MAX_NOTE_BYTES = 1 * MIB  # a larger README or LICENSE is left out


def check_folder(folder: Path) -> tuple[str, ...]:
    """Checks a folder without reading its weights.

    Returns:
        Names of the files that the store takes, sorted.

    Raises:
        ArtifactError: the folder cannot be served or is not safe to read; the message says why.
    """
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is not a folder")
    sizes = _list_files(folder)
    refuse_pickles(sizes)
    for name in REQUIRED_NAMES:
        if name not in sizes:
            raise ArtifactError(f"the folder lacks {name}: only Hugging Face checkpoints are read")
    texts = {name for name in sizes if _is_wanted_text(name, sizes[name])}
    for name in texts:
        max_bytes = MAX_TEXT_BYTES.get(name, MAX_OTHER_TEXT_BYTES)
        if sizes[name] > max_bytes:
            raise ArtifactError(f"{name} is too large: {format_bytes(sizes[name])}")
        if name.endswith(".json"):
            read_strangers_json(folder / name, max_bytes)
        elif name == TEMPLATE_NAME:
            _check_text(folder / name)
    weights = _check_index(folder, sizes) if INDEX_NAME in sizes else _check_single(folder, sizes)
    return tuple(sorted({*texts, *weights}))


def refuse_pickles(names: Collection[str]) -> None:
    """Refuses a folder whose weights are pickles. Pickles beside safetensors are simply not taken.

    Raises:
        ArtifactError: the weights are pickles; the message names the first.
    """
    pickles = sorted(name for name in names if name.endswith(PICKLE_SUFFIXES))
    if pickles and not any(name.endswith(".safetensors") for name in names):
        raise ArtifactError(
            f"{pickles[0]} is a pickle, and unpickling runs whatever code the file holds: "
            "convert the weights to safetensors"
        )


def read_license(folder: Path) -> str | None:
    """The licence that the front matter of the folder's README.md names, as hubs write it."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    front_matter = text.split("\n---", 1)[0] if text.startswith("---\n") else ""
    match = LICENSE_LINE.search(front_matter)
    return match[1] if match else None


def _list_files(folder: Path) -> dict[str, int]:
    """Sizes in bytes of the regular files directly in the folder, by name."""
    root = folder.resolve()
    sizes: dict[str, int] = {}
    for entry in folder.iterdir():
        if entry.is_symlink():
            _check_link(entry, root)
        status = entry.stat()
        if stat.S_ISREG(status.st_mode):
            sizes[entry.name] = status.st_size
    return sizes


def _check_link(link: Path, root: Path) -> None:
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise ArtifactError(f"{link.name} is a symlink to nothing") from error
    if not target.is_relative_to(root):
        raise ArtifactError(
            f"{link.name} is a symlink that leaves the folder (to {target}): copy the file itself there"
        )


def _is_wanted_text(name: str, num_bytes: int) -> bool:
    if any(fnmatchcase(name, pattern) for pattern in NOTE_PATTERNS):
        return num_bytes <= MAX_NOTE_BYTES
    return any(fnmatchcase(name, pattern) for pattern in FILE_PATTERNS)


def _check_text(path: Path) -> None:
    try:
        path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path.name} is not readable text: {error}") from error


def _check_single(folder: Path, sizes: Mapping[str, int]) -> Iterable[str]:
    if SINGLE_NAME not in sizes:
        others = sorted(name for name in sizes if name.endswith(".safetensors"))
        found = f" (it has {others[0]})" if others else ""
        raise ArtifactError(f"the folder lacks {SINGLE_NAME} or {INDEX_NAME}{found}")
    if not read_header(folder / SINGLE_NAME):
        raise ArtifactError(f"{SINGLE_NAME} holds no tensors")
    return (SINGLE_NAME,)


def _check_index(folder: Path, sizes: Mapping[str, int]) -> Iterable[str]:
    """Checks that each tensor of the index is in the shard that the index names, and in no other."""
    weight_map = read_strangers_json(folder / INDEX_NAME).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ArtifactError(f"{INDEX_NAME} has no weight_map")
    for shard in weight_map.values():
        _check_shard_name(shard, sizes)
    shards = sorted(set(weight_map.values()))
    found: dict[str, str] = {}
    for shard in shards:
        for tensor in read_header(folder / shard):
            if tensor in found:
                raise ArtifactError(f"tensor {tensor!r} is in both {found[tensor]} and {shard}")
            found[tensor] = shard
    for tensor, shard in weight_map.items():
        if found.get(tensor) != shard:
            raise ArtifactError(f"{INDEX_NAME} puts tensor {tensor!r} in {shard}, which does not have it")
    return (INDEX_NAME, *shards)


def _check_shard_name(shard: Any, sizes: Mapping[str, int]) -> None:
    if not isinstance(shard, str) or not shard.endswith(".safetensors"):
        raise ArtifactError(f"{INDEX_NAME} names {shard!r}, which is not a safetensors file")
    if "/" in shard or "\\" in shard or "\0" in shard:
        raise ArtifactError(f"{INDEX_NAME} names {shard!r}: a shard must lie in the folder itself")
    if shard not in sizes:
        raise ArtifactError(f"the shard {shard} is missing")
