"""The data folder: it belongs to one server at a time, which publishes the addresses of its doors there."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mooring.errors import ConfigurationError

__all__ = ["own_data_dir", "published", "published_http_url"]

_ADDRESSES = "server.json"


@contextmanager
def own_data_dir(data_dir: Path) -> Iterator[None]:
    """Makes the folder if it is missing, and holds it: two servers over one store and registry would each
    take the memory for theirs. The kernel releases the folder when the process ends, however it ends.

    Raises:
        ConfigurationError: another server holds the folder, or it cannot be used.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock_file = (data_dir / "server.lock").open("w")
    except OSError as error:
        raise ConfigurationError(f"the data folder cannot be used: {error}") from error
    with lock_file as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigurationError(
                f"another server uses the data folder {data_dir}: stop it, or give --data-dir"
            ) from error
        yield


@contextmanager
def published(data_dir: Path, addresses: Mapping[str, str]) -> Iterator[None]:
    """Publishes the addresses of the doors, for the command line and for whoever started the server with port
    0."""
    path = data_dir / _ADDRESSES
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps({"pid": os.getpid(), **addresses}))
    fresh.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def published_http_url(data_dir: Path) -> str | None:
    """The address of the HTTP door of the server that uses the folder; None if none was published.

    A server that was killed could not take its address back, so the address need not answer.
    """
    try:
        text = (data_dir / _ADDRESSES).read_text()
    except OSError:
        return None
    return str(json.loads(text)["http"])
