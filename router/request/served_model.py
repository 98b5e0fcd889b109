"""What the doors know of the models that clients may name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from router.request.sampling import GenerationDefaults

__all__ = ["ModelDirectory", "ServedModel"]


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A deployment as the doors see it.

    Attributes:
        name: what clients call it.
        artifact_key: of the packed weights that it serves.
        folder: its immutable version's files; ``tokenizer.json`` and its companions are read from here.
        max_model_len: longest prompt plus output, in tokens.
        created_s: when it was registered, in seconds since the epoch.
        residency: its present residency, as the glossary names it.
        engine: the engine that runs it.
        defaults: the model's own sampling settings.
        version: the number that the registry gave to what is served.
        prefix_cache: who shares computed prefixes, as in the deployment's policy.
    """

    name: str
    artifact_key: str
    folder: Path
    max_model_len: int
    created_s: int
    residency: Callable[[], str]
    engine: str
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)
    version: int = 1
    prefix_cache: str = "tenant"


class ModelDirectory(Protocol):
    """The deployments that are served. Answers from memory: it is asked on every request."""

    def get(self, name: str) -> ServedModel:
        """The model of that name.

        Raises:
            ModelNotFoundError: there is none.
            ModelUnavailableError: it is disabled or failed.
        """
        ...

    def list(self) -> Sequence[ServedModel]:
        """All of them, by name."""
        ...
