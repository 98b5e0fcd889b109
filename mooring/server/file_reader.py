"""Reads strangers' files for the importer, in a child process with limits (``mooring.server.file_reading``)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_registry.importing.examination import Examination, Outline
from model_registry.progress import Progress
from mooring.child import Limits
from mooring.errors import ArtifactError
from mooring.job import Job, run_job
from mooring.units import GIB, MIB

__all__ = ["FileReader"]

# What honest files never need: the largest published tokenizers and headers take a quarter of the memory and some
# seconds; the rates of a conversion are a tenth of those of a slow core and a slow disk.
_MEMORY_BYTES = 4 * GIB
_EXAMINATION_CPU_S, _EXAMINATION_S = 300, 1200
_CPU_BYTES_PER_S = 4 * MIB
_BYTES_PER_S = 1 * MIB


@dataclass(frozen=True, slots=True)
class FileReader:
    """A ``SourceReader``; its methods block, and are called on threads.

    Attributes:
        engine: the engine that is to run the models.
        text_cpu_s: seconds of computing for reading a tokenizer and rendering its chat template once.
    """

    engine: str
    text_cpu_s: int = 60

    def examine(self, folder: Path, progress: Progress) -> Examination:
        arguments = (
            "examine",
            str(folder),
            "--engine",
            self.engine,
            "--max-text-cpu-s",
            str(self.text_cpu_s),
        )
        limits = Limits(_MEMORY_BYTES, _EXAMINATION_CPU_S)
        return Examination.from_json(_run(arguments, limits, _EXAMINATION_S, progress, "check"))

    def outline(self, source: Path, progress: Progress) -> Outline:
        arguments = ("outline", str(source), "--engine", self.engine)
        limits = Limits(_MEMORY_BYTES + source.stat().st_size, _EXAMINATION_CPU_S)
        return Outline.from_json(_run(arguments, limits, _EXAMINATION_S, progress, "check"))

    def convert_gguf(self, source: Path, destination: Path, progress: Progress) -> None:
        source_bytes = source.stat().st_size
        limits = Limits(_MEMORY_BYTES + source_bytes, _EXAMINATION_CPU_S + source_bytes // _CPU_BYTES_PER_S)
        max_s = _EXAMINATION_S + source_bytes / _BYTES_PER_S
        _run(("convert", str(source), str(destination)), limits, max_s, progress, "convert")


def _run(arguments: Sequence[str], limits: Limits, max_s: float, progress: Progress, stage: str) -> Any:
    """Runs the child and returns its result; ``progress`` is called often, so that an error of it ends the child."""
    job = Job(
        "the reader of the model's files",
        "mooring.server.file_reading",
        arguments,
        lost=ArtifactError,
        limits=limits,
        max_s=max_s,
    )
    latest = (stage, 0, 0)

    def report(*reported: Any) -> None:
        nonlocal latest
        latest = reported
        progress(*latest)

    report(*latest)
    return asyncio.run(run_job(job, report, lambda: progress(*latest)))
