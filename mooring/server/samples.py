"""Sample models as sources: ``sample:NAME`` of the settings becomes a folder, made here if it is not there yet.

Making one takes long and computes much, so a child process does it (``ops.samples.maker``) and tells on its
standard output how far it is. A sample that has to be trained is made while the server serves, at idle
priority.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mooring.config import ModelEntry, Settings
from mooring.errors import ConfigurationError, InternalError, MooringError, error_from_code
from ops.samples.catalog import SAMPLE_NAMES, find_sample
from router.control.directory import DeploymentDirectory, Preparation

__all__ = ["SampleMaker", "model_entries", "sample_of"]

logger = logging.getLogger(__name__)

SAMPLE_SCHEME = "sample:"
_KEPT_STDERR_CHARS = 500
_LOWEST_PRIORITY = 19
_LOGGED_SHARE, _LOGGED_S = 0.1, 2.0  # least part of a stage, and time, between two lines of the log


def model_entries(settings: Settings) -> tuple[ModelEntry, ...]:
    """The models to serve from the start: those of the settings, then the samples if they are asked for and no
    model has their name."""
    named = {entry.name for entry in settings.models}
    samples = [name for name in SAMPLE_NAMES if settings.samples and name not in named]
    return (*settings.models, *(ModelEntry(name=name, source=SAMPLE_SCHEME + name) for name in samples))


def sample_of(entry: ModelEntry) -> str | None:
    """The sample that is the source of a model; None if its source is another.

    Raises:
        ConfigurationError: there is no sample of that name.
    """
    if not entry.source.startswith(SAMPLE_SCHEME):
        return None
    name = entry.source.removeprefix(SAMPLE_SCHEME)
    if name not in SAMPLE_NAMES:
        raise ConfigurationError(
            f"model {entry.name}: there is no sample {name!r}; there are {', '.join(SAMPLE_NAMES)}"
        )
    return name


@dataclass(slots=True)
class _Stage:
    """A stage of the work on one model, from its first report of progress.

    Attributes:
        name: the stage, as the maker calls it.
        began_s: time of the first report.
        first_done: what was done by then.
        logged_share, logged_s: part that the log says is done, and when it was told.
    """

    name: str
    began_s: float
    first_done: int
    logged_share: float
    logged_s: float


@dataclass(slots=True)
class SampleMaker:
    """Makes samples in child processes, and tells the directory and the log how far they are.

    Attributes:
        root: folder of the samples.
        directory: told of each model that is being made.
        clock: seconds, monotonic.
    """

    root: Path
    directory: DeploymentDirectory
    clock: Callable[[], float] = time.monotonic
    _background: asyncio.Task[None] | None = field(default=None)

    async def find(self, sample: str) -> Path | None:
        """The folder of a sample; None if it is not made yet, or if this Python cannot make it."""
        try:
            return await asyncio.to_thread(find_sample, sample, self.root)
        except ConfigurationError as error:
            logger.warning("sample %s: %s", sample, error.message)
            return None

    async def make(self, model: str, sample: str, *, idle: bool = False) -> Path:
        """Makes a sample for a model and returns its folder. If it is cancelled, the work ends at once.

        Args:
            idle: take only time that no other process wants.

        Raises:
            MooringError: the sample cannot be made; the message says why.
        """
        command = [sys.executable, "-m", "ops.samples.maker", sample, "--out", str(self.root)]
        command += ["--parent", str(os.getpid())]
        # In a session of its own: Ctrl-C is the server's, which ends the child itself.
        process = await asyncio.create_subprocess_exec(
            *command, stdout=PIPE, stderr=PIPE, start_new_session=True
        )
        if idle:
            _make_idle(process.pid)
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            folder, stderr = await asyncio.gather(self._follow(model, process.stdout), process.stderr.read())
            code = await process.wait()
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        if folder is None:
            tail = stderr.decode(errors="replace").strip()[-_KEPT_STDERR_CHARS:]
            raise InternalError(f"the maker of samples ended with status {code}: {tail or 'it said nothing'}")
        self.directory.prepare(model, Preparation("it is being registered"))
        return folder

    def make_later(
        self, entries: Sequence[ModelEntry], register: Callable[[ModelEntry, Path], Awaitable[None]]
    ) -> None:
        """Begins to make the samples of ``entries`` beside everything else, one after the other. Each is given
        to ``register`` when it is there; one that fails is withheld with the reason."""
        for entry in entries:
            self.directory.prepare(entry.name, Preparation("it waits for its turn"))
        if entries:
            self._background = asyncio.create_task(self._make_each(entries, register), name="make-samples")

    async def stop(self) -> None:
        """Ends the work that goes on in the background; its samples are begun again at the next start."""
        if self._background is not None:
            self._background.cancel()
            await asyncio.gather(self._background, return_exceptions=True)

    async def _make_each(
        self, entries: Sequence[ModelEntry], register: Callable[[ModelEntry, Path], Awaitable[None]]
    ) -> None:
        for entry in entries:
            try:
                sample = sample_of(entry)
                assert sample is not None
                folder = await self.make(entry.name, sample, idle=True)
                await register(entry, folder)
                logger.info("model %s is made and served", entry.name)
            except MooringError as error:
                self._fail(entry.name, error.message)
            except Exception as error:  # a task's boundary: nobody else would hear of it
                self._fail(entry.name, f"internal error: {error!r}")
                logger.exception("making sample model %s failed", entry.name)

    def _fail(self, model: str, reason: str) -> None:
        logger.error("model %s could not be made: %s", model, reason)
        if not self.directory.is_served(model):  # an older version may be
            self.directory.withhold(model, reason)

    async def _follow(self, model: str, stdout: asyncio.StreamReader) -> Path | None:
        """Passes progress on until the maker closes its output; returns the folder that it named.

        Raises:
            MooringError: the maker named an error.
        """
        stage: _Stage | None = None
        async for line in stdout:
            message = json.loads(line)
            if "folder" in message:
                return Path(message["folder"])
            if "error" in message:
                raise error_from_code(message["code"], message["error"])
            if stage is None or stage.name != message["stage"]:
                now_s = self.clock()
                stage = _Stage(message["stage"], now_s, message["done"], 0.0, now_s)
                logger.info("model %s is being made: %s", model, stage.name)
            self._tell(model, stage, message["done"], message["total"])
        return None

    def _tell(self, model: str, stage: _Stage, done: int, total: int) -> None:
        now_s = self.clock()
        share = done / total if total else None
        left_s = None
        if done > stage.first_done:
            left_s = (now_s - stage.began_s) / (done - stage.first_done) * (total - done)
        preparation = Preparation(stage.name, share, left_s)
        self.directory.prepare(model, preparation)
        if share is None or now_s < stage.logged_s + _LOGGED_S:
            return
        if share >= stage.logged_share + _LOGGED_SHARE:
            stage.logged_share, stage.logged_s = share, now_s
            logger.info("model %s is being made: %s", model, preparation)


def _make_idle(pid: int) -> None:
    """Gives a process, which has just begun, the lowest priority; what it starts inherits that. Its imports would
    otherwise cost the first requests a second."""
    with contextlib.suppress(ProcessLookupError):
        os.setpriority(os.PRIO_PROCESS, pid, _LOWEST_PRIORITY)
        with contextlib.suppress(PermissionError):  # some sandboxes have no such class; then niceness must do
            os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
