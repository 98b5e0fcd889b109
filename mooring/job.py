"""Jobs: work that a child process does, because it computes much or reads what a stranger wrote. This is the parent's
half; ``mooring.child_job`` is the child's.

A child prints one JSON object a line on its standard output: ``{"stage": ..., "done": ..., "total": ...}`` as it
goes, and at its end ``{"result": ...}``, or ``{"error": ..., "code": ...}`` before it exits with 1. What it prints on
its standard error goes to the log and to nobody else, since it may tell of files and paths. It ends with its parent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mooring.child import Limits, child_environment
from mooring.child_job import JobProgress
from mooring.errors import InternalError, MooringError, error_from_code
from mooring.units import MIB

__all__ = ["Job", "run_job"]

logger = logging.getLogger(__name__)

_MAX_LINE_BYTES = 4 * MIB
_KEPT_STDERR_BYTES = 4096
# Each thread of these libraries reserves address space, and they make one for each core: on a large machine a limit
# would be reached before anything is read.
_FEW_THREADS = {"OPENBLAS_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
_BEAT_S = 0.5
_GRACE_S = 2.0  # from its last line to its end, and from its end to that of its pipes
_LOWEST_PRIORITY = 19


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a child process.

    Attributes:
        name: noun for the child, in errors and in the log (``"the packer"``).
        module: the Python module that it runs; its ``main`` calls ``do_job``.
        arguments: command line of the module.
        lost: raised if the child ends without an answer.
        limits: memory and processor time that it may take; None means any.
        max_s: seconds after which it is killed; None means never.
        downloads: as for ``child_environment``.
        idle: whether it takes only processor time that no other process wants.
    """

    name: str
    module: str
    arguments: Sequence[str]
    lost: type[MooringError] = InternalError
    limits: Limits | None = None
    max_s: float | None = None
    downloads: bool = False
    idle: bool = False


async def run_job(job: Job, on_progress: JobProgress, on_wait: Callable[[], None] = lambda: None) -> Any:
    """Runs a job and returns its result. If the call is cancelled, the child has ended before it returns.

    Args:
        on_progress: called with each report of the child.
        on_wait: called every half second in which the child says nothing. An error that either raises ends the child.

    Raises:
        MooringError: the one that the child named, or ``job.lost`` if it ended without an answer; the message says at
            which stage and how.
    """
    flags = ["--parent", str(os.getpid())]
    if job.limits is not None:
        flags += ["--max-memory", str(job.limits.memory_bytes)]
        flags += ["--max-cpu-s", str(job.limits.cpu_s)] if job.limits.cpu_s is not None else []
    # In a session of its own: Ctrl-C is the parent's, which ends the child itself.
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", job.module, *job.arguments, *flags),
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
        limit=_MAX_LINE_BYTES,
        env=child_environment(_FEW_THREADS if job.limits is not None else None, downloads=job.downloads),
        start_new_session=True,
    )
    if job.idle:
        _make_idle(process.pid)
    said = bytearray()
    ended = asyncio.create_task(_follow(process, said))
    answers = _Answers(on_progress)
    try:
        async with asyncio.timeout(job.max_s):
            while not answers.complete and (line := await _next_line(process, on_wait)):
                answers.take(line)
        await asyncio.wait([ended], timeout=_GRACE_S)
    # A line that is too long, too deep or no JSON is no answer either.
    except (TimeoutError, ValueError, RecursionError) as error:
        is_late = isinstance(error, TimeoutError)
        fault = f"did not end within {job.max_s:g} s" if is_late else "answered nonsense"
        raise job.lost(f"{job.name} {fault}{answers.where}") from error
    finally:
        if not ended.done():
            await _kill(process, ended)
        _log(job.name, said)
    if not answers.complete:
        pointer = "; the server's log has what it said" if said else ""
        raise job.lost(f"{job.name} {_ending(process.returncode)}{answers.where}{pointer}")
    return answers.result


class _Answers:
    """The lines of one child, as they come."""

    def __init__(self, on_progress: JobProgress) -> None:
        self._on_progress = on_progress
        self._stage = ""
        self.complete = False
        self.result: Any = None

    @property
    def where(self) -> str:
        return f" (at stage {self._stage!r})" if self._stage else ""

    def take(self, line: bytes) -> None:
        """Raises ValueError for a line that no child prints, and the error that the child named."""
        message = json.loads(line)
        match message:
            case {"error": str(text), "code": str(code)}:
                raise error_from_code(code, text)
            case {"result": result}:
                self.result, self.complete = result, True
            case {"stage": str(stage), "done": int(done), "total": int(total)}:
                self._stage = stage
                self._on_progress(stage, done, total)
            case _:
                raise ValueError(f"not a line of a job: {line[:80]!r}")


async def _next_line(process: asyncio.subprocess.Process, on_wait: Callable[[], None]) -> bytes:
    """The child's next line; nothing once it has closed its output or has ended, whoever holds that open."""
    assert process.stdout is not None
    while True:
        try:
            async with asyncio.timeout(_BEAT_S):
                return await process.stdout.readline()
        except TimeoutError:
            if process.returncode is not None:
                return b""
            on_wait()


async def _follow(process: asyncio.subprocess.Process, said: bytearray) -> None:
    """Keeps the last of what a child prints on its standard error; returns when it has ended and that is closed."""
    assert process.stderr is not None
    while chunk := await process.stderr.read(_KEPT_STDERR_BYTES):
        said += chunk
        del said[:-_KEPT_STDERR_BYTES]
    await process.wait()


async def _kill(process: asyncio.subprocess.Process, ended: asyncio.Task[None]) -> None:
    """Kills a child and what it has started. If a process that has left its group still holds its pipes, they are not
    waited for."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    while not ended.done():
        await asyncio.wait([ended], timeout=_GRACE_S)
        if process.returncode is not None and not ended.done():
            ended.cancel()
            process._transport.close()  # type: ignore[attr-defined]  # nothing public closes the pipes
            return


def _log(name: str, stderr: bytearray) -> None:
    """Logs what a child printed, line by line; what could pass for another line of the log cannot be printed."""
    for line in stderr.decode(errors="replace").splitlines():
        logger.warning("%s: %s", name, "".join(each if each.isprintable() else "?" for each in line))


def _ending(status: int | None) -> str:
    if status == -signal.SIGXCPU:
        return "took all the processor time that it may"
    if status is not None and status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"


def _make_idle(pid: int) -> None:
    """Gives a process, which has just begun, the lowest priority; what it starts inherits that. Its imports would
    otherwise cost the first requests a second."""
    with contextlib.suppress(ProcessLookupError):
        os.setpriority(os.PRIO_PROCESS, pid, _LOWEST_PRIORITY)
        with contextlib.suppress(PermissionError):  # some sandboxes have no such class; then niceness must do
            os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
