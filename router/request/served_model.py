"""The doors' knowledge of the models that clients may name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from mooring.policy import DeploymentPolicy
from router.request.sampling import GenerationDefaults

__all__ = ["ModelDirectory", "ServedModel"]


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A deployment as the doors see it.

    Attributes:
        name: the name by which clients call it.
        artifact_key: key of the packed weights that it serves.
        folder: folder of its immutable version; ``tokenizer.json`` and its companions are read from there.
        max_model_len: longest prompt plus output, in tokens.
        created_s: when it was registered, in seconds since the epoch.
        residency: tells its present residency, as the glossary names it.
        whereabouts: tells the same and why that is so, also once it is served no longer.
        engine: the engine that runs it.
        defaults: the model's own sampling settings.
        version: the registry's number for the version that is served.
        policy: the deployment's policy.
    """

    name: str
    artifact_key: str
    folder: Path
    max_model_len: int
    created_s: int
    residency: Callable[[], str]
    whereabouts: Callable[[], tuple[str, str]]
    engine: str
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)
    version: int = 1
    policy: DeploymentPolicy = field(default_factory=DeploymentPolicy)


class ModelDirectory(Protocol):
    """The deployments that are served. It answers from memory, since it is asked on every request."""

    def get(self, name: str) -> ServedModel:
        """The model of that name.

        Raises:
            ModelNotFoundError: there is no such model.
            ModelUnavailableError: the model is disabled or failed.
            ModelNotReadyError: the model is still being made.
        """
        ...

    def is_known(self, name: str) -> bool:
        """Whether there is a model of that name, served now or not."""
        ...

    def list(self) -> Sequence[ServedModel]:
        """All models, by name."""
        ...
