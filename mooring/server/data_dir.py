"""The data folder: it belongs to one server at a time, which publishes the addresses of its doors there."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from mooring.errors import ConfigurationError

__all__ = ["own_data_dir", "published", "published_addresses"]

logger = logging.getLogger(__name__)

_ADDRESSES = "server.json"
_LOCK = "server.lock"
_TRIES = 20
_TRY_AGAIN_S = 0.01
_OTHERS = 0o077


@contextmanager
def own_data_dir(data_dir: Path) -> Iterator[None]:
    """Makes the folder if it is missing, closes it to other users, and holds it: two servers over one store and
    registry would each take the memory for theirs. The kernel releases the folder when the process ends, however it
    ends. From then on all that this process makes, and what it starts, is for this user alone.

    Raises:
        ConfigurationError: another server holds the folder, or it cannot be used.
    """
    try:
        os.umask(_OTHERS)
        data_dir.mkdir(parents=True, exist_ok=True)
        _close_to_others(data_dir)
        lock_file = (data_dir / _LOCK).open("w")
    except OSError as error:
        raise ConfigurationError(f"the data folder cannot be used: {error}") from error
    with lock_file as lock:
        if not _hold(lock):
            raise ConfigurationError(
                f"another server uses the data folder {data_dir}: stop it, or give --data-dir"
            )
        (data_dir / _ADDRESSES).unlink(missing_ok=True)  # of a server that was killed
        yield


def _close_to_others(data_dir: Path) -> None:
    """Takes from others what earlier releases, or whoever made the folder, left them of it and of what lies in it."""
    data_dir = data_dir.resolve()  # the folder itself may be named by a link; links in it are not followed
    status = data_dir.stat()
    if status.st_mode & stat.S_ISVTX:  # a folder like /tmp is everybody's
        return
    if status.st_uid != os.geteuid():
        if status.st_mode & _OTHERS:
            logger.warning("others can enter the data folder %s, and it is not ours to close it", data_dir)
        return
    for path in (data_dir, *data_dir.iterdir()):
        found = path.lstat()
        if found.st_mode & _OTHERS and found.st_uid == os.geteuid() and not path.is_symlink():
            path.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS)


@contextmanager
def published(data_dir: Path, addresses: Mapping[str, str]) -> Iterator[None]:
    """Publishes the addresses of the doors, and the file of their certificate if they speak TLS, for the command line
    and for whoever started the server with port 0."""
    path = data_dir / _ADDRESSES
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps({"pid": os.getpid(), **addresses}))
    fresh.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def published_addresses(data_dir: Path) -> Mapping[str, str] | None:
    """Addresses that the server of the folder published; None if there is none, or its doors are not open yet.

    The lock decides: a server that was killed could not take its addresses back, and whoever has its port now would
    be sent the admin key.
    """
    try:
        with (data_dir / _LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        pass
    except OSError:
        return None
    else:
        return None
    try:
        text = (data_dir / _ADDRESSES).read_text()
    except OSError:
        return None
    found: Mapping[str, str] = json.loads(text)
    return found


def _hold(lock: IO[str]) -> bool:
    """Takes the lock; False if another server has it. A command that looks whether a server has it holds it for an
    instant, so it is tried more than once."""
    for _ in range(_TRIES):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_TRY_AGAIN_S)
        else:
            return True
    return False
