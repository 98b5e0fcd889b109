"""The admin key: made at first start, kept in the data folder, never printed."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from mooring.errors import ConfigurationError

__all__ = ["ensure_admin_key", "read_admin_key", "read_metrics_key"]


def ensure_admin_key(path: Path) -> str:
    """The key kept at ``path``; if there is none, a new one, in a file of mode 0600.

    Raises:
        ConfigurationError: others can read the file, or it is empty.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written whole under another name first, so that two servers that start at once agree and neither sees
    # half a key.
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):  # an earlier start made a key: that one holds
            os.link(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
    return read_admin_key(path)


def read_admin_key(path: Path) -> str:
    """Reads the key.

    Raises:
        ConfigurationError: there is no such file, others can read it, or it is empty.
    """
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigurationError(f"{path} can be read by others: chmod 600 {path}")
        key = path.read_text().strip()
    except OSError as error:
        raise ConfigurationError(f"the admin key cannot be read: {error}") from error
    if not key:
        raise ConfigurationError(f"{path} is empty: delete it and start the server to get a new key")
    return key


def read_metrics_key(path: Path | None) -> str | None:
    """The key that reads the metrics; None if there is no file for it.

    Raises:
        ConfigurationError: the file cannot be read, or is empty.
    """
    if path is None:
        return None
    try:
        key = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"the metrics key cannot be read: {error}", param="metrics_key_file"
        ) from error
    if not key:
        raise ConfigurationError(f"{path} has no key in it", param="metrics_key_file")
    return key
