"""The three sample models: made if they are missing, found if they are not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from model_registry.progress import Progress, no_progress
from mooring.errors import InternalError
from ops.samples.cache import content_key, link, make_once, sole_maker
from ops.samples.corpus import read_corpus
from ops.samples.recipes import DRAFT, PYTHONLM, Recipe
from ops.samples.sample import Sample, describe
from ops.samples.smollm2 import SMOLLM2_KEY, make_smollm2

__all__ = ["SAMPLE_NAMES", "SMOLLM2", "TRAINED", "ensure_samples", "find_sample", "make_sample", "trainer"]

SMOLLM2 = "smollm2"
TRAINED: Mapping[str, Recipe] = MappingProxyType({each.name: each for each in (PYTHONLM, DRAFT)})
"""The samples that are trained here, by name."""
SAMPLE_NAMES = (SMOLLM2, *TRAINED)

_BASE_FOLDER = f"{SMOLLM2}-{content_key(SMOLLM2_KEY)}"

# glibc gives every large buffer back to the system and takes it anew, which costs a third of a training step
# in page faults; with these settings it keeps them. And if the cores are busy with other work, threads that
# spin while they wait for each other take several times as long as threads that sleep.
_TRAINER_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "passive",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 36),
}


def find_sample(name: str, out: Path) -> Path | None:
    """The folder in ``out`` of the present version of a sample; None if it is not made yet.

    Raises:
        ConfigurationError: this Python has no library sources, from which the trained samples are made.
    """
    folder = out / _folder_name(name)
    return folder if folder.is_dir() else None


def make_sample(name: str, out: Path, on_progress: Progress = no_progress) -> Path:
    """Makes a sample if ``out`` lacks it, and returns its folder.

    Folders are named by the inputs that they were made from, so a new version lies beside the old one; a link
    with the sample's plain name points to the present one. Several processes may call this at once: one
    works, the others wait.

    Args:
        name: one of ``SAMPLE_NAMES``.
        out: folder for the models.
        on_progress: called with a stage (``"pythonlm: train"``) and how much of it is done.

    Raises:
        ConfigurationError: a download failed, or this Python has no library sources.
        ArtifactError: a downloaded file is not the expected one.
    """
    folder_name = _folder_name(name)
    with sole_maker(out):
        if name in (SMOLLM2, DRAFT.name):
            base = make_once(
                out, _BASE_FOLDER, lambda folder: make_smollm2(folder, out / "downloads", on_progress)
            )
            link(out / SMOLLM2, base)
        if name in TRAINED:
            made = make_once(out, folder_name, trainer(TRAINED[name], out / _BASE_FOLDER, on_progress))
            link(out / name, made)
    return out / folder_name


def ensure_samples(out: Path, on_progress: Progress = no_progress) -> list[Sample]:
    """Makes the sample models that ``out`` lacks, and describes all three; quick if none is missing. Raises the
    errors of ``make_sample``."""
    return [describe(name, make_sample(name, out, on_progress)) for name in SAMPLE_NAMES]


def _folder_name(name: str) -> str:
    if name == SMOLLM2:
        return _BASE_FOLDER
    inputs = [read_corpus().digest, *([_BASE_FOLDER] if name == DRAFT.name else [])]
    return f"{name}-{content_key([TRAINED[name].key_inputs(), *inputs])}"


def trainer(recipe: Recipe, base: Path, on_progress: Progress) -> Callable[[Path], None]:
    """Returns a function that makes the folder of ``recipe``: it runs a trainer process and passes its
    progress on.

    The function raises ``InternalError`` with the process's last words if that fails.
    """

    def make(folder: Path) -> None:
        on_progress(f"{recipe.name}: read", 0, 0)
        command = [sys.executable, "-m", "ops.samples.trainer", str(os.getpid())]
        command += [recipe.name, str(folder), str(base)]
        with (
            tempfile.TemporaryFile("w+") as complaints,
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=complaints,
                text=True,
                env=os.environ | _TRAINER_ENVIRONMENT,
            ) as process,
        ):
            assert process.stdout is not None  # it was asked for
            try:
                for line in process.stdout:
                    step = json.loads(line)
                    on_progress(f"{recipe.name}: train", step["done"], step["total"])
            except BaseException:
                process.kill()  # leaving the block would wait for it
                raise
            if process.wait() != 0:
                complaints.seek(0)
                raise InternalError(f"training {recipe.name} failed: {complaints.read()[-2000:]}")

    return make
