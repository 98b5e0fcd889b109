"""What this process has open, to tell a leak from what another test left to the garbage collector."""

from __future__ import annotations

import os

__all__ = ["open_files"]


def open_files() -> set[tuple[str, int]]:
    """Target and inode of every descriptor."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        path = f"/proc/self/fd/{name}"
        try:
            found.add((os.readlink(path), os.stat(path).st_ino))
        except FileNotFoundError:  # the listing's own descriptor
            continue
    return found
