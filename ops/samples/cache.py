"""Folders that are either whole or not there, named by the inputs that they were made from."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["content_key", "link", "make_once", "sole_maker"]

_STAGING_PREFIX = ".making-"


def content_key(inputs: Any) -> str:
    """Twelve hex digits of the sha-256 of ``inputs``, which JSON must be able to write."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:12]


@contextlib.contextmanager
def sole_maker(root: Path) -> Iterator[None]:
    """Holds ``root`` for this process, waiting for another that has it, and clears leftovers of a process
    that died."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for leftover in root.glob(f"{_STAGING_PREFIX}*"):
            if leftover.is_symlink():
                leftover.unlink()
            else:
                shutil.rmtree(leftover)
        yield


def make_once(root: Path, folder_name: str, make: Callable[[Path], None]) -> Path:
    """The folder ``root / folder_name``; ``make`` makes it if it is not there yet.

    ``make`` gets a path that does not exist, in a scratch folder of its own; the folder that it makes there
    is renamed into place once it returns. Call this within ``sole_maker(root)``.
    """
    folder = root / folder_name
    if not folder.is_dir():
        scratch = root / f"{_STAGING_PREFIX}{folder_name}"
        scratch.mkdir()
        try:
            make(scratch / "model")
            (scratch / "model").rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder


def link(name: Path, folder: Path) -> None:
    """Points the link ``name`` to ``folder`` beside it, in one step. Only the holder of the root may call
    it."""
    fresh = name.with_name(f"{_STAGING_PREFIX}{name.name}")
    fresh.symlink_to(folder.name)
    fresh.replace(name)
