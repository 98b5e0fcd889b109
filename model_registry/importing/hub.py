"""Fetches models from the Hugging Face hub, or from another that answers as it does and is not believed more than has
to be: names, sizes and digests that it tells are checked before they are used.

The hub's client is imported when a model is fetched: a server that fetches none would start a tenth slower with it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_registry.checkpoint import FILE_PATTERNS, INDEX_NAME, refuse_pickles
from model_registry.progress import Progress
from model_registry.store import check_room, room_bytes
from mooring.errors import ArtifactError, InvalidRequestError
from mooring.units import MIB

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoSibling
    from tqdm import tqdm

__all__ = ["HUB_SCHEME", "Hub", "HubSource", "parse_hub_source"]

HUB_SCHEME = "hf://"
SOURCE = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
CHUNK_BYTES = 8 * MIB
SLACK_BYTES = 64 * MIB  # what the downloader may count twice when it tries again
CONFIG_NAME = "config.json"
MAX_CONFIG_BYTES = 4 * MIB
WANTED_PATTERNS = (*FILE_PATTERNS, INDEX_NAME, "model*.safetensors")


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository, and the branch, tag or commit that is wanted; None means the default branch."""

    repo_id: str
    revision: str | None

    def __str__(self) -> str:
        return HUB_SCHEME + self.repo_id + (f"@{self.revision}" if self.revision else "")


def parse_hub_source(text: str) -> HubSource:
    """Reads ``hf://org/name`` or ``hf://org/name@revision``.

    Raises:
        InvalidRequestError: the text does not have that form.
    """
    match = SOURCE.fullmatch(text)
    if match is None:
        raise InvalidRequestError(f"{text!r} is not of the form hf://org/name[@revision]", param="source")
    return HubSource(match[1], match[2])


class Hub:
    """A hub, by default the public one. A token is read from where the hub's own tools keep it.

    Args:
        endpoint: base URL of another hub or a mirror.
    """

    def __init__(self, endpoint: str | None = None) -> None:
        self._endpoint = endpoint

    @cached_property
    def _api(self) -> HfApi:
        from huggingface_hub import HfApi

        return HfApi(endpoint=self._endpoint)

    def resolve(self, source: HubSource) -> HubSource:
        """The source with its revision as a commit, which never changes.

        Raises:
            ArtifactError: as in ``fetch``.
        """
        with _explained(source):
            commit = self._api.model_info(source.repo_id, revision=source.revision).sha
        if not isinstance(commit, str) or not COMMIT.fullmatch(commit):  # it becomes the name of a folder
            raise ArtifactError(f"the hub names no commit for {source}: {str(commit)[:100]!r}")
        return HubSource(source.repo_id, commit)

    def fetch_config(self, source: HubSource, folder: Path) -> None:
        """Downloads a repository's ``config.json`` alone.

        Args:
            source: as ``resolve`` returned it.

        Raises:
            ArtifactError: as in ``fetch``; or there is none, or one that is too large.
        """
        from huggingface_hub import hf_hub_download

        with _explained(source):
            info = self._api.model_info(source.repo_id, revision=source.revision, files_metadata=True)
            sizes = {each.rfilename: each.size for each in info.siblings or ()}
            if CONFIG_NAME not in sizes:
                raise ArtifactError(f"{source} has no {CONFIG_NAME}")
            if (sizes[CONFIG_NAME] or 0) > MAX_CONFIG_BYTES:
                raise ArtifactError(f"{CONFIG_NAME} of {source} is too large")
            hf_hub_download(
                source.repo_id,
                CONFIG_NAME,
                revision=source.revision,
                local_dir=folder,
                endpoint=self._endpoint,
            )

    def fetch(self, source: HubSource, folder: Path, progress: Progress) -> None:
        """Downloads the files of a repository that the store takes. Files that an earlier try left in the
        folder are kept and completed.

        Args:
            source: as ``resolve`` returned it.
            progress: called with stages ``"download"`` and ``"verify"``.

        Raises:
            ArtifactError: the hub cannot be reached, has no such repository or revision, has only pickles or more
                than the disk holds, or sends other files than it announced.
        """
        from huggingface_hub import snapshot_download

        with _explained(source):
            info = self._api.model_info(source.repo_id, revision=source.revision, files_metadata=True)
            if info.sha != source.revision:
                raise ArtifactError(f"the hub answers with another commit for {source}")
            wanted = _wanted_files(info.siblings or ())
            total_bytes = sum(file.size or 0 for file in wanted)
            max_bytes = total_bytes + SLACK_BYTES
            here = [folder / file.name for file in wanted]
            present_bytes = sum(path.stat().st_size for path in here if path.is_file())
            # What is fetched stays beside its copy in the store until that is complete.
            missing_bytes = max(0, total_bytes - present_bytes)
            check_room(folder, missing_bytes + total_bytes, f"{source} with its copy in the store")
            if any(file.size is None for file in wanted):  # as some mirrors announce none
                total_bytes, max_bytes = 0, room_bytes(folder) // 2
            progress("download", 0, total_bytes)
            snapshot_download(
                source.repo_id,
                revision=info.sha,
                local_dir=folder,
                allow_patterns=[file.name for file in wanted],
                endpoint=self._endpoint,
                tqdm_class=_byte_counter(progress, total_bytes, max_bytes),
            )
            progress("download", total_bytes, total_bytes)
        _verify(wanted, folder, progress)


@dataclass(frozen=True, slots=True)
class _HubFile:
    """A file as the hub announced it; ``sha256`` is of files that the hub keeps by that digest. ``size`` is in bytes,
    None if the hub announced none."""

    name: str
    size: int | None
    sha256: str | None


def _wanted_files(siblings: Iterable[RepoSibling]) -> list[_HubFile]:
    """The files that the store takes, by their plain names: no path and no pattern is ever taken for one.

    Raises:
        ArtifactError: the weights are pickles, or a file's announced size or digest is none.
    """
    top_level = {each.rfilename: each for each in siblings if FILE_NAME.fullmatch(each.rfilename)}
    refuse_pickles(top_level)
    wanted = []
    for name, each in top_level.items():
        if not any(fnmatchcase(name, pattern) for pattern in WANTED_PATTERNS):
            continue
        size, digest = each.size, each.lfs.sha256 if each.lfs is not None else None
        is_size = size is None or (isinstance(size, int) and size >= 0)
        if not is_size or (digest is not None and not SHA256.fullmatch(digest)):
            raise ArtifactError(f"the hub announces no size or digest for {name} that could be one")
        wanted.append(_HubFile(name, size, digest))
    return wanted


def _verify(files: Iterable[_HubFile], folder: Path, progress: Progress) -> None:
    """Compares what came with what was announced; a file that differs is removed, so that a later try fetches it."""
    announced = [file for file in files if file.sha256 is not None]
    total_bytes = sum(file.size or 0 for file in announced)
    done_bytes = 0
    for file in announced:
        progress("verify", done_bytes, total_bytes)
        path, digest = folder / file.name, hashlib.sha256()
        with path.open("rb", buffering=0) as reader:
            while chunk := reader.read(CHUNK_BYTES):
                digest.update(chunk)
                done_bytes += len(chunk)
                progress("verify", min(done_bytes, total_bytes), total_bytes)
        if digest.hexdigest() != file.sha256:
            path.unlink()
            raise ArtifactError(
                f"{file.name} is not the file that the hub announced: its sha-256 differs. Try again"
            )


@contextmanager
def _explained(source: HubSource) -> Iterator[None]:
    """Turns each of the hub's failures into an error that says what to do about it."""
    from huggingface_hub import errors as hub_errors

    # The error of whichever HTTP library this release of the hub's client uses.
    http_error: type[Exception] = hub_errors.HTTPError  # type: ignore[attr-defined]
    try:
        yield
    except hub_errors.GatedRepoError as error:
        raise ArtifactError(f"{source} is gated: accept its terms on the hub and set HF_TOKEN") from error
    except hub_errors.RevisionNotFoundError as error:
        raise ArtifactError(f"{source.repo_id} has no revision {source.revision!r}") from error
    except hub_errors.RepositoryNotFoundError as error:
        raise ArtifactError(f"the hub has no {source.repo_id}, or it is private: set HF_TOKEN") from error
    except hub_errors.HFValidationError as error:
        raise ArtifactError(f"{source} is not a name that the hub allows: {error}") from error
    except (OSError, http_error) as error:
        raise ArtifactError(
            f"cannot fetch {source}: {error}. Without a connection to the hub, register a local folder"
        ) from error


def _byte_counter(progress: Progress, total_bytes: int, max_bytes: int) -> type[tqdm]:
    """A progress bar that draws nothing and reports the bytes that the hub's downloader counts on it.

    Args:
        total_bytes: what is to come; 0 if the hub did not say.
        max_bytes: beyond so many the download ends.
    """
    from tqdm import tqdm

    class ByteCounter(tqdm):  # type: ignore[misc]  # tqdm has no types
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._counts_bytes = kwargs.get("unit") == "B"
            self._done_bytes = 0
            kwargs["disable"] = True
            super().__init__(*args, **{k: v for k, v in kwargs.items() if k != "name"})

        def update(self, n: float | None = 1) -> bool | None:
            self._done_bytes += int(n or 0)
            if self._counts_bytes and self._done_bytes > max_bytes:
                more = "it announced" if total_bytes else "the disk holds with a copy in the store"
                raise ArtifactError(f"the hub sends more bytes than {more}")
            if self._counts_bytes and self._done_bytes > 0:
                done_bytes = min(self._done_bytes, total_bytes) if total_bytes else self._done_bytes
                progress("download", done_bytes, total_bytes)
            return None

    return ByteCounter
