"""A real server's readers, and the steps of its worker that stop them."""

from __future__ import annotations

import ctypes
import os
import select
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from support.running_server import RunningServer
from support.until import until

from benchmarks.random_models import TINY_SHAPE, make_random_models
from memory_manager.core_signal import CoreSignal

pytestmark = pytest.mark.integration

_SYS_PIDFD_GETFD = 438


@contextmanager
def signal_of(pid: int) -> Iterator[CoreSignal]:
    """A worker's own signal, in this process."""
    command = psutil.Process(pid).cmdline()
    at = command.index("--core-signal-fds")
    process = os.pidfd_open(pid)
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    ours = [syscall(_SYS_PIDFD_GETFD, process, int(fd), 0) for fd in command[at + 1 : at + 3]]
    os.close(process)
    assert min(ours) >= 0, os.strerror(ctypes.get_errno())
    found = CoreSignal(*ours)
    yield found
    found.close()


def is_clear(found: CoreSignal) -> bool:
    return bool(select.select([found.descriptors[0]], [], [], 0)[0])


def complete(server: RunningServer, model: str, max_tokens: int) -> int:
    body = {"model": model, "prompt": [5, 17, 203], "max_tokens": max_tokens, "ignore_eos": True}
    return server.client.post(f"{server.http_url}/v1/completions", json=body, timeout=60).status_code


def test_steps_stop_the_servers_readers(tmp_path: Path) -> None:
    folders = make_random_models(tmp_path / "models", TINY_SHAPE, ("streaming", "read"), "fp32")
    flags = ["--dtype", "float32", "--memory-budget", "64MiB"]
    with RunningServer(tmp_path / "data", folders, flags) as server, ThreadPoolExecutor(2) as threads:
        assert complete(server, "streaming", 1) == 200
        (pid,) = server.worker_pids()
        with signal_of(pid) as found:
            assert is_clear(found), "nobody steps"
            found.take_wanted()
            found.stop()
            waking = threads.submit(server.admin, "POST", "/deployments/read/wake")
            until(found.take_wanted, "a reader waits")
            found.clear()
            assert waking.result(30).status_code == 204
            answering = threads.submit(complete, server, "streaming", 200)
            until(lambda: not is_clear(found), "a step stops the readers")
            assert answering.result(30) == 200
            until(lambda: is_clear(found), "the last step has ended")


def test_a_worker_that_dies_in_a_step_leaves_the_signal_clear(tmp_path: Path) -> None:
    folders = make_random_models(tmp_path / "models", TINY_SHAPE, ("streaming",), "fp32")
    flags = ["--dtype", "float32", "--memory-budget", "64MiB"]
    with RunningServer(tmp_path / "data", folders, flags) as server, ThreadPoolExecutor(1) as threads:
        assert complete(server, "streaming", 1) == 200
        (pid,) = server.worker_pids()
        with signal_of(pid) as found:
            answering = threads.submit(complete, server, "streaming", 400)
            while True:  # until it is caught in a step
                until(lambda: not is_clear(found))
                os.kill(pid, signal.SIGSTOP)
                until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
                if not is_clear(found):
                    break
                os.kill(pid, signal.SIGCONT)
            os.kill(pid, signal.SIGKILL)
            until(lambda: is_clear(found), "the worker was buried")
        assert answering.result(60) == 200, "its sequence went on in the next life"
        assert complete(server, "streaming", 1) == 200
