"""Findings about a folder before it may enter the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from model_registry.checkpoint import check_folder, read_license
from model_registry.progress import Progress
from model_registry.records import CheckpointDescription
from mooring.errors import ArtifactError

__all__ = ["Examination", "Outline", "SourceReader", "examine_folder"]


@dataclass(frozen=True, slots=True)
class Examination:
    """Findings about a folder that may enter.

    Attributes:
        names: files that the store takes, sorted.
        architecture: as an engine names it.
        description: what the registry keeps of an engine's description, as JSON types.
        license: the licence that the folder names.
    """

    names: tuple[str, ...]
    architecture: str
    description: Mapping[str, Any]
    license: str | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Any) -> Examination:
        """The inverse of ``to_json``.

        Raises:
            ArtifactError: these are not the fields of an examination.
        """
        match raw:
            case {
                "names": [*names],
                "architecture": str(architecture),
                "description": dict(description),
                "license": (str() | None) as terms,
            } if all(isinstance(name, str) for name in names):
                return cls(tuple(names), architecture, description, terms)
        raise ArtifactError("the reader of the model's files answered nonsense")


@dataclass(frozen=True, slots=True)
class Outline:
    """A source as its configuration alone describes it.

    Attributes:
        config: an engine's normal form of it.
        precision: the precision that its weights are likely to have.
        max_model_len: longest prompt plus output, in tokens.
    """

    config: Mapping[str, Any]
    precision: str
    max_model_len: int

    @classmethod
    def from_json(cls, raw: Any) -> Outline:
        """An outline of its fields as JSON has them.

        Raises:
            ArtifactError: these are not the fields of an outline.
        """
        match raw:
            case {"config": dict(config), "precision": str(precision), "max_model_len": int(max_model_len)}:
                return cls(config, precision, max_model_len)
        raise ArtifactError("the reader of the model's files answered nonsense")


class SourceReader(Protocol):
    """Reads what a stranger wrote, where it can do no harm: all interpretation of a source's bytes is its work."""

    def examine(self, folder: Path, progress: Progress) -> Examination:
        """Checks a folder without reading its weights.

        Raises:
            ArtifactError: it may not enter the store; the message says why.
        """
        ...

    def outline(self, source: Path, progress: Progress) -> Outline:
        """Reads the configuration of a folder, or the header of a GGUF file.

        Raises:
            ArtifactError: it cannot be read, or the model is of a kind that is not supported.
        """
        ...

    def convert_gguf(self, source: Path, destination: Path, progress: Progress) -> None:
        """Writes the model of a GGUF file as a folder; raises what ``gguf_import.convert_gguf`` raises."""
        ...


def examine_folder(folder: Path, describe: Callable[[Path], CheckpointDescription]) -> Examination:
    """Examines a folder in this process.

    Args:
        describe: describes a folder as an engine sees it; raises ``ArtifactError`` for a model that it cannot run.

    Raises:
        ArtifactError: the folder may not enter the store; the message says why.
    """
    names = check_folder(folder)
    found = describe(folder)
    description = {
        "num_parameters": found.num_parameters,
        "vocab_size": found.vocab_size,
        "max_model_len": found.max_model_len,
        "checkpoint_dtype": found.checkpoint_dtype,
        "default_precision": found.default_precision,
        "eos_token_ids": list(found.eos_token_ids),
        "config": dict(found.config),
        "generation_config": dict(found.generation_config),
    }
    return Examination(names, found.architecture, description, read_license(folder))
