"""How many connections the doors may hold: as many as there are file descriptors for, and no more."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from pathlib import Path

from mooring.config import Settings
from mooring.errors import ConfigurationError

__all__ = ["ConnectionLimits", "connection_limits", "num_open_files", "raise_file_limit"]

_NUM_DOORS = 2
_RESERVED_SHARE = 0.25  # of the descriptors: models that come later, their files and workers
_MOST = 4096  # by default: an idle connection costs some 20 KB
_LEAST = 4
_ADDRESS_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits of one door.

    Attributes:
        max_connections: most connections at a time.
        max_per_address: most connections of one address at a time; None if there is no such limit.
    """

    max_connections: int
    max_per_address: int | None


def raise_file_limit() -> None:
    """Raises the process's limit of open files to the most that it may set itself."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def connection_limits(settings: Settings) -> ConnectionLimits:
    """Limits of each door, from the settings and from the descriptors that are left now that workers and registry
    have theirs.

    Raises:
        ConfigurationError: the settings want more connections than there are descriptors for.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = max(_LEAST, int(limit * (1 - _RESERVED_SHARE) - num_open_files()) // _NUM_DOORS)
    wanted = settings.max_connections
    if wanted is not None and wanted > room:
        raise ConfigurationError(
            f"max_connections is {wanted}, and the limit of {limit} open files leaves {room} to each door: "
            "raise it (ulimit -n)",
            param="max_connections",
        )
    most = wanted or min(_MOST, room)
    per_address = settings.max_connections_per_address or max(_LEAST, int(most * _ADDRESS_SHARE))
    return ConnectionLimits(most, None if settings.behind_proxy else min(most, per_address))


def num_open_files() -> int:
    """File descriptors that this process has."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
