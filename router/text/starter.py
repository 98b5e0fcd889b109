"""Starts the processes of texts, by a small process that has imported what they need and copies itself."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import orjson

from mooring.child import child_environment
from mooring.errors import InternalError
from router.text.frames import REFUSED, STARTED

__all__ = ["StartedProcess", "TextStarter"]

_EXIT_S = 5.0
# One text at a time in each process: a copy of a process with threads would not work.
_ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}


class StartedProcess:
    """A process of a text, by a descriptor that can mean no other process.

    Attributes:
        connection: our end of the socket that it serves.
    """

    def __init__(self, connection: socket.socket, pidfd: int | None) -> None:
        self.connection = connection
        self._pidfd = pidfd

    def kill(self) -> None:
        """Ends the process. Safe to call more than once."""
        pidfd, self._pidfd = self._pidfd, None
        if pidfd is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)


class TextStarter:
    """Keeps the starter running and asks it for processes. Its methods block; any thread may call them.

    The starter ends when its socket does, so however this process ends.

    Attributes:
        command: command line of the starter, without its last word, the descriptor of its socket.
    """

    command: Sequence[str] = (sys.executable, "-m", "router.text_process")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._starter: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def start(self) -> None:
        """Starts the starter if it does not run, and does not wait until it has imported everything."""
        with self._lock:
            self._ensure_running()

    def process(self, folder: Path, memory_bytes: int) -> StartedProcess:
        """Starts the process of a model's text, which then reads the folder.

        Args:
            memory_bytes: most bytes of its address space.

        Raises:
            InternalError: the starter does not work, or the system starts no more processes.
        """
        job = orjson.dumps({"folder": str(folder), "memory_bytes": memory_bytes})
        ours, theirs = socket.socketpair()
        with theirs, self._lock:
            for _ in range(2):  # it may have been killed since the last time
                try:
                    control = self._ensure_running()
                    socket.send_fds(control, [job], [theirs.fileno()])
                    answer, descriptors, _, _ = socket.recv_fds(control, 1, 1)
                except OSError:
                    answer, descriptors = b"", []
                if answer == STARTED:
                    return StartedProcess(ours, next(iter(descriptors), None))
                if answer == REFUSED:
                    break
                self._end()
        ours.close()
        raise InternalError("processes of texts cannot be started")

    def close(self) -> None:
        """Ends the starter and every process that it started."""
        with self._lock:
            self._end()

    def _ensure_running(self) -> socket.socket:
        if self._control is not None:
            return self._control
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._starter = subprocess.Popen(
                [*self.command, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # Ctrl-C in a terminal is for the server
                env=child_environment(_ENVIRONMENT),
            )
        self._control = ours
        return ours

    def _end(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._starter is not None:
            try:
                self._starter.wait(_EXIT_S)
            except subprocess.TimeoutExpired:
                self._starter.kill()
                self._starter.wait()
            self._starter = None
