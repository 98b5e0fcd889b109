"""Registers models: fetches them from any kind of source, copies them into the store and notes them in the
registry."""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model_registry.importing.examination import Examination, Outline, SourceReader
from model_registry.importing.hub import HUB_SCHEME, Hub, parse_hub_source
from model_registry.names import check_name
from model_registry.progress import Progress, no_progress
from model_registry.records import NewVersion, VersionRecord
from model_registry.registry import Registry
from model_registry.store import ArtifactStore
from mooring.errors import ArtifactError

__all__ = ["Importer"]

_BEAT_S = 0.5


class Importer:
    """Brings versions in, and takes them out together with their files.

    Args:
        store: takes the files.
        registry: takes the record of the version.
        reader: reads sources; the importer itself only copies bytes.
        hub: serves ``hf://`` sources.
        downloads: folder of unfinished downloads, kept so that a later try goes on with them.
    """

    def __init__(
        self,
        store: ArtifactStore,
        registry: Registry,
        reader: SourceReader,
        hub: Hub,
        downloads: Path,
    ) -> None:
        self._store = store
        self._registry = registry
        self._reader = reader
        self._hub = hub
        self._downloads = downloads
        # Between their arrival in the store and their row in the registry files have no owner, and a delete
        # of an equal version would take them away. One copy at a time is also what a disk does best.
        self._lock = threading.Lock()
        # A reader may take much memory, and so one reads at a time; but conversions take hours.
        self._reading = threading.Lock()
        self._converting = threading.Lock()

    def register(self, model: str, source: str, progress: Progress | None = None) -> VersionRecord:
        """Registers a version of a model. If the model has a version with the same bytes already, returns
        that one.

        Args:
            source: a folder, a ``.gguf`` file, or ``hf://org/name[@revision]``.
            progress: called with the stages ``"download"``, ``"verify"``, ``"convert"``, ``"check"``, ``"copy"`` and
                ``"check the copy"``, those that the source needs, on this thread or on the downloader's; again and
                again while others have their turn. An error that it raises ends the work.

        Raises:
            InvalidRequestError: the name or the source is malformed.
            ArtifactError: the model is unsafe, broken, unsupported or cannot be fetched; the message says
                which.
        """
        check_name(model, "model")
        report = progress or no_progress
        with self._opened(source, report) as (folder, origin):
            found = self._examine(folder, "check", report)  # or gigabytes would be copied only to be refused

            def check_copy(copy: Path) -> tuple[str, ...]:
                nonlocal found
                found = self._examine(copy, "check the copy", report)
                return found.names

            with _turn(self._lock, "copy", report):
                stored = self._store.import_folder(folder, found.names, check_copy, report)
                new = NewVersion(
                    digest=stored.digest,
                    num_bytes=stored.num_bytes,
                    source=origin,
                    architecture=found.architecture,
                    description=found.description,
                    license=found.license,
                )
                return self._registry.register_version(model, new)

    def outline(self, source: str) -> Outline:
        """Reads what a source's configuration tells; nothing is registered, and of a hub's model nothing else is
        fetched. Raises what ``register`` raises."""
        if source.startswith(HUB_SCHEME):
            wanted = self._hub.resolve(parse_hub_source(source))
            with self._store.scratch() as scratch:
                self._hub.fetch_config(wanted, scratch)
                return self._outlined(scratch)
        path, is_folder = _located(source)
        if not is_folder and not path.is_file():
            raise ArtifactError(f"there is nothing at {path}")
        return self._outlined(path)

    def _outlined(self, path: Path) -> Outline:
        with self._reading:
            return self._reader.outline(path, no_progress)

    def _examine(self, folder: Path, stage: str, report: Progress) -> Examination:
        with _turn(self._reading, stage, report):
            return self._reader.examine(folder, lambda part, done, total: report(stage, 0, 0))

    def delete_version(self, model: str, number: int) -> None:
        """Removes a version, and its files if no other version has the same.

        Raises:
            NotFoundError: there is no such version.
            ConflictError: a deployment uses the version.
        """
        with self._lock:
            version = self._registry.get_version(model, number)
            packed = self._packed_keys(version)
            self._registry.delete_version(model, number)
            self._remove_files(version.digest, packed)

    def delete_model(self, name: str) -> None:
        """Removes a model with all its versions, or none of them; their files go as in ``delete_version``.

        Raises:
            NotFoundError: there is no such model.
            ConflictError: a deployment uses one of the versions.
        """
        with self._lock:
            found = [(each, self._packed_keys(each)) for each in self._registry.list_versions(name)]
            self._registry.delete_model(name)
            for version, packed in found:
                self._remove_files(version.digest, packed)

    def _packed_keys(self, version: VersionRecord) -> list[str]:
        variants = self._registry.list_variants(version.model, version.number)
        return [each.packed_key for each in variants if each.packed_key is not None]

    def _remove_files(self, digest: str, packed_keys: list[str]) -> None:
        """Removes an artifact and the artifacts packed from it, unless another version has the same
        artifact."""
        if self._registry.has_digest(digest):
            return
        for key in packed_keys:
            self._store.remove_packed(key)
        self._store.remove(digest)

    @contextmanager
    def _opened(self, source: str, progress: Progress) -> Iterator[tuple[Path, str]]:
        """The source as a folder, and the text by which the registry remembers it."""
        if source.startswith(HUB_SCHEME):
            with self._downloaded(source, progress) as opened:
                yield opened
            return
        path, is_folder = _located(source)
        if is_folder:
            yield path, str(path)
        elif path.is_file():
            with self._store.scratch() as scratch:
                converted = scratch / "converted"
                with _turn(self._converting, "convert", progress):
                    self._reader.convert_gguf(path, converted, progress)
                yield converted, str(path)
        else:
            raise ArtifactError(f"there is nothing at {path}")

    @contextmanager
    def _downloaded(self, source: str, progress: Progress) -> Iterator[tuple[Path, str]]:
        wanted = self._hub.resolve(parse_hub_source(source))
        folder = self._downloads / f"{wanted.repo_id.replace('/', '--')}@{wanted.revision}"
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
        try:
            while not _locked(lock):  # two registrations of one commit take turns
                progress("download", 0, 0)
                time.sleep(_BEAT_S)
            self._hub.fetch(wanted, folder, progress)
            yield folder, str(wanted)
            shutil.rmtree(folder)  # only if all went well: otherwise a later try goes on with these files
        finally:
            os.close(lock)


@contextmanager
def _turn(lock: threading.Lock, stage: str, report: Progress) -> Iterator[None]:
    """Holds a lock; reports while it waits, so that the wait can be ended."""
    while not lock.acquire(timeout=_BEAT_S):
        report(stage, 0, 0)
    try:
        yield
    finally:
        lock.release()


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _located(source: str) -> tuple[Path, bool]:
    """The path of a local source, and whether it is a folder."""
    try:
        path = Path(source).expanduser().resolve()
        return path, path.is_dir()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL in it, a home folder of no user
        raise ArtifactError(f"{source!r} cannot be looked up: {error}") from error
