"""A folder whose files are opened so that nobody can lead the reader out of it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from mooring.errors import ArtifactError

__all__ = ["OpenFolder", "open_folder"]


class OpenFolder:
    """A folder that is held open. Its owner may rename and replace what is in it at any time."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """Opens a regular file of the folder, unbuffered. A link is followed if it stays in the folder.

        Where a link leads is looked at once it has been followed, and then what was looked at is read: between a look
        at a name and its opening, another file could take the name.

        Raises:
            ArtifactError: the name is no file's, or leads out of the folder.
        """
        if "/" in name or name in ("", ".", ".."):
            raise ArtifactError(f"{name!r} is not the name of a file")
        try:
            # Pinned, and not yet opened: nothing is read or waited for.
            found = os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=self._descriptor)
        except OSError as error:
            raise ArtifactError(f"{name} cannot be opened: {error.strerror}") from error
        try:
            if not stat.S_ISREG(os.fstat(found).st_mode):
                raise ArtifactError(f"{name} is not a regular file")
            place = _place_of(found)
            if not place.is_relative_to(_place_of(self._descriptor)):
                raise ArtifactError(
                    f"{name} is a symlink that leaves the folder (to {place}): copy the file itself there"
                )
            with open(_path_of(found), "rb", buffering=0) as file:
                yield file
        finally:
            os.close(found)


@contextmanager
def open_folder(path: Path) -> Iterator[OpenFolder]:
    """Opens a folder.

    Raises:
        ArtifactError: there is none.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be opened as a folder: {error.strerror}") from error
    try:
        yield OpenFolder(descriptor)
    finally:
        os.close(descriptor)


def _path_of(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"


def _place_of(descriptor: int) -> Path:
    return Path(os.readlink(_path_of(descriptor)))
