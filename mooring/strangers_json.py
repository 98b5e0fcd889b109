"""JSON that a stranger wrote: bounds are kept before anything is made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mooring.errors import ArtifactError
from mooring.units import MIB, format_bytes

__all__ = ["parse_strangers_json", "read_strangers_json"]

# A pair of brackets is two bytes of text and up to a hundred of memory. The largest published tokenizers have half a
# million of them, a file of so many tensors as nobody has published yet three million.
_MAX_CONTAINERS = 4_000_000
_MAX_FILE_BYTES = 128 * MIB  # the largest published tokenizer.json has a quarter of it


def read_strangers_json(path: Path, max_bytes: int = _MAX_FILE_BYTES) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Raises:
        ArtifactError: the file cannot be read, is larger than ``max_bytes``, or holds no such object.
    """
    try:
        with path.open("rb") as file:
            text = file.read(max_bytes + 1)
    except OSError as error:
        raise ArtifactError(f"{path.name} cannot be read: {error.strerror}") from error
    if len(text) > max_bytes:
        raise ArtifactError(f"{path.name} is too large: only {format_bytes(max_bytes)} are read")
    return parse_strangers_json(path.name, text)


def parse_strangers_json(name: str, text: bytes) -> dict[str, Any]:
    """Parses one JSON object.

    Args:
        name: noun for the text, in errors.

    Raises:
        ArtifactError: the text is no JSON object, or has more lists and objects in it than any honest one.
    """
    if text.count(b"[") + text.count(b"{") > _MAX_CONTAINERS:
        raise ArtifactError(f"{name} has more than {_MAX_CONTAINERS} lists and objects")
    try:
        value = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{name} is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise ArtifactError(f"{name} is not a JSON object")
    return value
