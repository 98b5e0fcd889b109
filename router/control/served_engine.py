"""An engine as the registrar needs it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memory_manager.ports import ArtifactRef
from router.control.deployment_spec import KVBytes

__all__ = ["Packer", "ServedEngine", "WeightsBytes"]

Packer = Callable[[Path, str, str, Callable[[int, int], None]], Awaitable[ArtifactRef]]
"""(folder, digest, precision, progress) to the artifact; an engine's ``prepare`` bound to the folder of artifacts.
Raises ``ArtifactError``."""

WeightsBytes = Callable[[Mapping[str, Any], str], int]
"""Bytes of the artifact of a model, from the configuration of a checkpoint's description and a precision."""


async def _nothing_to_do(deployment: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class ServedEngine:
    """An engine that deployments can have.

    Attributes:
        pack: makes artifacts.
        kv_bytes: KV that a sequence needs.
        weights_bytes: bytes of an artifact.
        start: starts the workers that a deployment needs, and returns when they are there; does nothing if they are.
            Raises ``ConfigurationError`` if they cannot be started.
        stop: ends the workers that a deployment had for itself, once they have let everything go.
    """

    pack: Packer
    kv_bytes: KVBytes
    weights_bytes: WeightsBytes
    start: Callable[[str], Awaitable[None]] = _nothing_to_do
    stop: Callable[[str], Awaitable[None]] = _nothing_to_do
