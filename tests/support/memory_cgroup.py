"""A memory cgroup of a test's own, v2 or v1, in which real processes can be short of memory."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

__all__ = ["MemoryCgroup", "memory_cgroup"]

_ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class MemoryCgroup:
    """``proc`` is what ``/proc`` would look like to a process in it, as far as ``HostReader`` reads it."""

    path: Path
    is_v2: bool

    @property
    def procs_file(self) -> Path:
        return self.path / "cgroup.procs"

    @property
    def used_bytes(self) -> int:
        return int((self.path / ("memory.current" if self.is_v2 else "memory.usage_in_bytes")).read_text())

    @property
    def cgroup_line(self) -> str:
        name = self.path.relative_to(_ROOT if self.is_v2 else _ROOT / "memory")
        return f"0::/{name}\n" if self.is_v2 else f"4:memory:/{name}\n"

    def add(self, pid: int) -> None:
        self.procs_file.write_text(str(pid))


@contextmanager
def memory_cgroup(limit_bytes: int) -> Iterator[MemoryCgroup]:
    """One with that limit, below our own; skips the test where none can be made."""
    is_v2 = (_ROOT / "cgroup.controllers").exists()
    parent = _ROOT if is_v2 else _ROOT / "memory"
    group = MemoryCgroup(parent / f"mooring-test-{uuid.uuid4().hex[:12]}", is_v2)
    try:
        group.path.mkdir()
        (group.path / ("memory.max" if is_v2 else "memory.limit_in_bytes")).write_text(str(limit_bytes))
    except OSError as error:
        if group.path.exists():
            group.path.rmdir()
        pytest.skip(f"no memory cgroup can be made here: {error}")
    try:
        yield group
    finally:
        _remove(group)


def _remove(group: MemoryCgroup) -> None:
    """Once its processes have ended; the kernel takes a moment to see that they have."""
    deadline_s = time.monotonic() + 10
    while True:
        try:
            os.rmdir(group.path)
            return
        except OSError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.02)
