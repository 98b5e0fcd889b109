"""The artifact store: immutable model folders under the digest of their content.

::

    root/artifacts/<digest>/   files of one version, read-only, with SHA256SUMS beside them
    root/packed/<key>/         an artifact packed by an engine's packer
    root/tmp/                  folders being built

``SHA256SUMS`` has a line for each file in the form that ``sha256sum -c`` checks, and the digest is the
sha-256 of ``SHA256SUMS``; so the digest covers names and bytes alike. A folder is built under ``tmp``,
written to the disk and only then renamed to its place: it is there whole or not at all, whenever the power
fails.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from model_registry.open_folder import open_folder
from model_registry.progress import Progress, no_progress
from mooring.errors import ArtifactError, NotFoundError
from mooring.units import MIB, format_bytes

__all__ = ["ArtifactStore", "StoredArtifact", "check_room", "room_bytes"]

SUMS_NAME = "SHA256SUMS"
CHUNK_BYTES = 8 * MIB
FREE_BYTES = 64 * MIB  # left on the disk for the database and logs
DIGEST = re.compile(r"[0-9a-f]{64}")
PACKED_KEY = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]*")


@dataclass(frozen=True, slots=True)
class StoredArtifact:
    """A model folder in the store.

    Attributes:
        digest: sha-256 over names and content, in hex.
        path: the folder, a Hugging Face checkpoint that nobody may change.
        num_bytes: bytes of all its files.
    """

    digest: str
    path: Path
    num_bytes: int


class ArtifactStore:
    """Model folders by digest and packed artifacts by key.

    Threads and processes may share a root: each folder is built under a name and a lock of its own, and if
    two of them finish the same folder, the first stays.

    Args:
        root: made if it is missing; leftovers of builds that died are removed from it.
    """

    def __init__(self, root: Path) -> None:
        self._artifacts = root / "artifacts"
        self._packed = root / "packed"
        self._tmp = root / "tmp"
        for folder in (self._artifacts, self._packed, self._tmp):
            folder.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()

    def import_folder(
        self,
        path: Path,
        names: Sequence[str],
        check: Callable[[Path], Sequence[str]],
        progress: Progress | None = None,
    ) -> StoredArtifact:
        """Copies files of a folder into the store. Importing the same bytes again changes nothing.

        Args:
            path: the folder.
            names: the files to take, sorted.
            check: checks the copy, which nobody can change any more, and returns the names of the files that it must
                have; raises ``ArtifactError`` for one that may not enter.
            progress: called with stage ``"copy"``.

        Raises:
            ArtifactError: a file leads out of the folder, or the copy is not of these files, may not enter or is too
                large for the disk; the message says why.
        """
        total_bytes = sum((path / name).stat().st_size for name in names)
        check_room(self._tmp, total_bytes, "the model")
        with self.scratch() as scratch, open_folder(path) as folder:
            building = scratch / "artifact"
            building.mkdir()
            report = _Copied(progress or no_progress, total_bytes)
            sums = []
            for name in names:
                with folder.open(name) as reader:
                    sums.append(f"{_copy_hashed(reader, building / name, report)}  {name}\n")
            if tuple(check(building)) != tuple(names):
                raise ArtifactError(f"{path} changed while it was copied")
            text = "".join(sums).encode()
            digest = hashlib.sha256(text).hexdigest()
            _write_synced(building / SUMS_NAME, text)
            self._publish(building, self._artifacts / digest)
        return self.get(digest)

    def get(self, digest: str) -> StoredArtifact:
        """The artifact of this digest.

        Raises:
            NotFoundError: the store does not have it.
        """
        path = self._artifacts / digest
        if not DIGEST.fullmatch(digest) or not path.is_dir():
            raise NotFoundError(f"the store has no artifact {digest!r}")
        num_bytes = sum(file.stat().st_size for file in path.iterdir() if file.name != SUMS_NAME)
        return StoredArtifact(digest, path, num_bytes)

    def remove(self, digest: str) -> None:
        """Removes an artifact, and all that was packed from it, whole or not; no error if it is not there."""
        if DIGEST.fullmatch(digest):
            self._discard(self._artifacts / digest)
            for pattern in (f"{digest[:16]}-*", f".{digest[:16]}-*.partial"):
                for folder in self._packed.glob(pattern):
                    self._discard(folder)

    def remove_packed(self, key: str) -> None:
        """Removes a packed artifact; no error if it is not there."""
        if PACKED_KEY.fullmatch(key):
            self._discard(self._packed / key)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty folder on the store's disk, removed afterwards, or at the next start after a crash."""
        folder = Path(tempfile.mkdtemp(dir=self._tmp))
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # held while the folder's owner lives; see _remove_leftovers
            yield folder
        finally:
            shutil.rmtree(folder)
            os.close(lock)

    def _publish(self, building: Path, final: Path) -> None:
        """Renames a finished folder to its place; if an equal folder is there already, leaves that one."""
        for file in building.iterdir():
            file.chmod(0o400)
        _sync(building)
        try:
            building.rename(final)
        except OSError:
            if not final.is_dir():  # a folder with files cannot be renamed over: someone was first
                raise
            return
        _sync(final.parent)

    def _discard(self, folder: Path) -> None:
        """Takes a folder from its place in one step, so that no reader sees half of it."""
        with self.scratch() as scratch:
            try:
                folder.rename(scratch / "discarded")
            except FileNotFoundError:
                return
            _sync(folder.parent)

    def _remove_leftovers(self) -> None:
        for folder in self._tmp.iterdir():
            lock = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # the folder's owner lives
            else:
                shutil.rmtree(folder)
            finally:
                os.close(lock)


@dataclass(slots=True)
class _Copied:
    """Counts the bytes of one import and passes them on."""

    progress: Progress
    total_bytes: int
    done_bytes: int = 0

    def add(self, num_bytes: int) -> None:
        self.done_bytes += num_bytes
        if self.done_bytes > self.total_bytes:
            raise ArtifactError("the folder changed while it was copied: a file has grown")
        self.progress("copy", self.done_bytes, self.total_bytes)


def check_room(folder: Path, num_bytes: int, what: str) -> None:
    """Checks that so many bytes fit on a folder's disk.

    Raises:
        ArtifactError: they do not.
    """
    most_bytes = room_bytes(folder)
    if num_bytes > most_bytes:
        raise ArtifactError(
            f"{what} needs {format_bytes(num_bytes)} of disk, and may take {format_bytes(max(0, most_bytes))}"
        )


def room_bytes(folder: Path) -> int:
    """Bytes that may be written to a folder's disk; below 0 if it is too full already."""
    return shutil.disk_usage(folder).free - FREE_BYTES


def _copy_hashed(reader: IO[bytes], target: Path, copied: _Copied) -> str:
    """Copies an open file and writes it through to the disk; returns its sha-256 in hex."""
    digest = hashlib.sha256()
    with target.open("xb", buffering=0) as writer:
        while chunk := memoryview(reader.read(CHUNK_BYTES)):
            num_bytes = len(chunk)
            digest.update(chunk)
            while chunk:  # an unbuffered write may take less than it is given
                chunk = chunk[writer.write(chunk) :]
            copied.add(num_bytes)
        os.fsync(writer.fileno())
    return digest.hexdigest()


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    """Writes a file, or the list of names in a folder, through to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
