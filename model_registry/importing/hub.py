"""Fetches models from the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub import errors as hub_errors
from tqdm import tqdm

from model_registry.checkpoint import FILE_PATTERNS, INDEX_NAME, refuse_pickles
from model_registry.progress import Progress
from mooring.errors import ArtifactError, InvalidRequestError

__all__ = ["HUB_SCHEME", "Hub", "HubSource", "parse_hub_source"]

HUB_SCHEME = "hf://"
SOURCE = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
# The error of whichever HTTP library this release of the hub's client uses.
HTTP_ERROR: type[Exception] = hub_errors.HTTPError  # type: ignore[attr-defined]
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
        self._api = HfApi(endpoint=endpoint)

    def resolve(self, source: HubSource) -> HubSource:
        """The source with its revision as a commit, which never changes.

        Raises:
            ArtifactError: as in ``fetch``.
        """
        with _explained(source):
            return HubSource(
                source.repo_id, self._api.model_info(source.repo_id, revision=source.revision).sha
            )

    def fetch(self, source: HubSource, folder: Path, progress: Progress) -> None:
        """Downloads the files of a repository that the store takes. Files that an earlier try left in the
        folder are kept and completed.

        Args:
            progress: called with stage ``"download"``.

        Raises:
            ArtifactError: the hub cannot be reached, has no such repository or revision, or has only pickles.
        """
        with _explained(source):
            info = self._api.model_info(source.repo_id, revision=source.revision, files_metadata=True)
            sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
            top_level = [name for name in sizes if "/" not in name]
            refuse_pickles(top_level)
            wanted = [name for name in top_level if any(fnmatchcase(name, p) for p in WANTED_PATTERNS)]
            total_bytes = sum(sizes[name] for name in wanted)
            progress("download", 0, total_bytes)
            snapshot_download(
                source.repo_id,
                revision=info.sha,
                local_dir=folder,
                allow_patterns=wanted,
                endpoint=self._endpoint,
                tqdm_class=_byte_counter(progress, total_bytes),
            )
            progress("download", total_bytes, total_bytes)


@contextmanager
def _explained(source: HubSource) -> Iterator[None]:
    """Turns each of the hub's failures into an error that says what to do about it."""
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
    except (OSError, HTTP_ERROR) as error:
        raise ArtifactError(
            f"cannot fetch {source}: {error}. Without a connection to the hub, register a local folder"
        ) from error


def _byte_counter(progress: Progress, total_bytes: int) -> type[tqdm]:
    """A progress bar that draws nothing and reports the bytes that the hub's downloader counts on it."""

    class ByteCounter(tqdm):  # type: ignore[misc]  # tqdm has no types
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._counts_bytes = kwargs.get("unit") == "B"
            self._done_bytes = 0
            kwargs["disable"] = True
            super().__init__(*args, **{k: v for k, v in kwargs.items() if k != "name"})

        def update(self, n: float | None = 1) -> bool | None:
            self._done_bytes += int(n or 0)
            if self._counts_bytes and self._done_bytes > 0:
                progress("download", min(self._done_bytes, total_bytes), total_bytes)
            return None

    return ByteCounter
