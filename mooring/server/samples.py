"""Sample models as sources: ``sample:NAME`` of the settings becomes a folder, made here if it is not there yet.

Making one takes long and computes much, so a child process does it (``ops.samples.maker``). A sample that has to be
trained is made while the server serves, at idle priority.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mooring.config import ModelEntry, Settings
from mooring.errors import ConfigurationError, MooringError
from mooring.job import Job, run_job
from ops.samples.catalog import SAMPLE_NAMES, find_sample
from router.control.directory import DeploymentDirectory, Preparation

__all__ = ["SampleMaker", "model_entries", "sample_of"]

logger = logging.getLogger(__name__)

SAMPLE_SCHEME = "sample:"
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
class _Stages:
    """Tells the directory and the log how far the making of one model is."""

    model: str
    directory: DeploymentDirectory
    clock: Callable[[], float]
    _stage: _Stage | None = field(default=None)

    def report(self, name: str, done: int, total: int) -> None:
        """Takes one report of the maker's."""
        now_s = self.clock()
        stage = self._stage
        if stage is None or stage.name != name:
            stage = self._stage = _Stage(name, now_s, done, 0.0, now_s)
            logger.info("model %s is being made: %s", self.model, name)
        share = done / total if total else None
        left_s = None
        if done > stage.first_done:
            left_s = (now_s - stage.began_s) / (done - stage.first_done) * (total - done)
        preparation = Preparation(name, share, left_s)
        self.directory.prepare(self.model, preparation)
        if share is None or now_s < stage.logged_s + _LOGGED_S:
            return
        if share >= stage.logged_share + _LOGGED_SHARE:
            stage.logged_share, stage.logged_s = share, now_s
            logger.info("model %s is being made: %s", self.model, preparation)


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
        arguments = (sample, "--out", str(self.root))
        job = Job("the maker of samples", "ops.samples.maker", arguments, downloads=True, idle=idle)
        stages = _Stages(model, self.directory, self.clock)
        folder = Path(await run_job(job, stages.report))
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
