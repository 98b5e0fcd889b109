"""Starter of text processes: it has imported what they need, and copies itself for each model.

It reads nothing that a stranger wrote. It ends when the server does, and what it started ends with it.
"""

from __future__ import annotations

import array
import gc
import os
import signal
import socket
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from mooring.child import Limits, limit_this_process
from router.text.frames import REFUSED, STARTED
from router.text_process.service import serve


def main(control: socket.socket) -> None:
    """Starts a process for each message: a folder and limits as JSON, and the socket that it is to serve on. The
    answer, ``STARTED``, carries a descriptor of the process (pidfd), or none if it has ended already; it is
    ``REFUSED`` if the system starts no more processes."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system clears away what has ended
    gc.collect()
    gc.freeze()
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1 << 16, 1)
        if not message:
            return
        [connection] = descriptors
        starter_pid = os.getpid()
        try:
            pid = os.fork()
        except OSError:  # no more processes, or no memory for one: those that there are go on
            traceback.print_exc()
            os.close(connection)
            control.sendall(REFUSED)
            continue
        if pid == 0:
            control.close()
            _run(socket.socket(fileno=connection), orjson.loads(message), starter_pid)
        os.close(connection)
        _answer(control, pid)


def _run(connection: socket.socket, job: dict[str, Any], starter_pid: int) -> None:
    """The process of one text, to its end."""
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        limit_this_process(Limits(memory_bytes=job["memory_bytes"]), starter_pid)
        serve(connection, Path(job["folder"]))
        status = 0
    except (BrokenPipeError, ConnectionResetError):  # the server has ended it
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _answer(control: socket.socket, pid: int) -> None:
    descriptors = []
    with suppress(ProcessLookupError):
        descriptors.append(os.pidfd_open(pid))
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    control.sendmsg([STARTED], rights)
    for descriptor in descriptors:
        os.close(descriptor)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
