"""Memory that one life of a worker shares with the server: its status page and its flight recorder.

The server makes it as a memfd, the worker inherits the descriptor and both map it. What the worker wrote last is
there after its death.
"""

from __future__ import annotations

import fcntl
import mmap
import os

from engines.link.flight_recorder import FlightRecorder
from engines.link.status_page import StatusPage

__all__ = ["WorkerMemory"]

_NUM_BYTES = StatusPage.NUM_BYTES + FlightRecorder.NUM_BYTES


class WorkerMemory:
    """The shared memory of one life of a worker. Its mapping ends with the last reference to it.

    Args:
        fd: the memfd; the caller keeps it, and may close it at once.

    Attributes:
        status: the status page.
        recorder: the flight recorder.
    """

    def __init__(self, fd: int) -> None:
        memory = memoryview(mmap.mmap(fd, _NUM_BYTES))
        self.status = StatusPage(memory[: StatusPage.NUM_BYTES])
        self.recorder = FlightRecorder(memory[StatusPage.NUM_BYTES :])

    @staticmethod
    def make() -> int:
        """Makes the memfd of a new life, which nobody can shrink, and returns its descriptor."""
        fd = os.memfd_create("mooring-worker", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, _NUM_BYTES)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        return fd
