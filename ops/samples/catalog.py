"""The three sample models: made if they are missing, found if they are not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from model_registry.progress import Progress, no_progress
from mooring.errors import InternalError
from ops.samples.cache import content_key, link, make_once, sole_maker
from ops.samples.corpus import read_corpus
from ops.samples.recipes import DRAFT, PYTHONLM, Recipe
from ops.samples.sample import Sample, describe
from ops.samples.smollm2 import SMOLLM2_KEY, make_smollm2

__all__ = ["ensure_samples", "trainer"]

# glibc gives every large buffer back to the system and takes it anew, which costs a third of a training step
# in page faults; with these settings it keeps them. And if the cores are busy with other work, threads that
# spin while they wait for each other take several times as long as threads that sleep.
_TRAINER_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "passive",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 36),
}


def ensure_samples(out: Path, on_progress: Progress = no_progress) -> list[Sample]:
    """Makes the sample models that ``out`` lacks, and describes all three; quick if none is missing.

    Folders are named by the inputs that they were made from, so a new version lies beside the old one; a link
    with the sample's plain name points to the present one. Several processes may call this at once: one
    works, the others wait.

    Args:
        out: folder for the models.
        on_progress: called with a stage (``"pythonlm: train"``) and how much of it is done.

    Raises:
        ConfigurationError: a download failed, or this Python has no library sources.
        ArtifactError: a downloaded file is not the expected one.
    """
    corpus = read_corpus()
    base_name = f"smollm2-{content_key(SMOLLM2_KEY)}"
    with sole_maker(out):
        base = make_once(out, base_name, lambda folder: make_smollm2(folder, out / "downloads", on_progress))
        trained = []
        for recipe, inputs in ((PYTHONLM, [corpus.digest]), (DRAFT, [corpus.digest, base_name])):
            folder_name = f"{recipe.name}-{content_key([recipe.key_inputs(), *inputs])}"
            trained.append(make_once(out, folder_name, trainer(recipe, base, on_progress)))
        folders = dict(zip(("smollm2", PYTHONLM.name, DRAFT.name), (base, *trained), strict=True))
        for name, folder in folders.items():
            link(out / name, folder)
    return [describe(name, folder) for name, folder in folders.items()]


def trainer(recipe: Recipe, base: Path, on_progress: Progress) -> Callable[[Path], None]:
    """Returns a function that makes the folder of ``recipe``: it runs a trainer process and passes its
    progress on.

    The function raises ``InternalError`` with the process's last words if that fails.
    """

    def make(folder: Path) -> None:
        on_progress(f"{recipe.name}: read", 0, 0)
        command = [sys.executable, "-m", "ops.samples.trainer", recipe.name, str(folder), str(base)]
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
