"""The engines there are, one row for each.

A row has two halves. The server's describes checkpoints and has artifacts made; it is imported by the first call.
The worker's is named, and imported by the worker alone: the server never imports torch.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from engines.artifact import PLAIN_LAYOUT
from memory_manager.ports import ArtifactRef, Capabilities, WarmPlace
from mooring.errors import ConfigurationError

if TYPE_CHECKING:
    from engines.api import Engine
    from engines.checkpoint.model_config import ModelDescription
    from engines.config import WorkerOptions
    from engines.link.flight_recorder import FlightRecorder

__all__ = ["KINDS", "EngineFactory", "EngineKind", "Prepare", "engine_kind"]

EngineFactory = Callable[["WorkerOptions", "FlightRecorder"], "Engine"]
"""Makes an engine in its worker, which tells the recorder of each step before it runs. Raises ``TypeError`` for a
setting that it does not have."""


class Prepare(Protocol):
    """Makes the artifact that an engine loads."""

    def __call__(
        self,
        packed_root: Path,
        layout: str,
        folder: Path,
        digest: str,
        precision: str,
        on_progress: Callable[[int, int], None],
        /,
    ) -> Awaitable[ArtifactRef]:
        """Returns the artifact of a version, made now unless it was before.

        Args:
            packed_root: where artifacts are kept.
            layout: how its bytes are to lie, as the engine says for the devices that will read it.
            folder: the version's Hugging Face folder.
            digest: sha-256 of the version.
            precision: ``bf16``, ``fp32``, or ``auto`` for the checkpoint's own.
            on_progress: called with the bytes written so far and their total.

        Raises:
            ArtifactError: there can be none; the message says why.
        """
        ...


@dataclass(frozen=True, slots=True)
class EngineKind:
    """One engine.

    Attributes:
        name: as settings, registry and status pages have it.
        describe: reads and checks a checkpoint folder; raises ``ArtifactError`` for one that the engine cannot run.
        outline: the normal form of a ``config.json``, the likely precision of its weights, and the longest prompt
            plus output in tokens; raises ``ArtifactError`` as ``describe`` does.
        prepare: makes its artifact: for `torch` and `null` a folder packed by us, for `tensorrt_llm` the checkpoint's
            own.
        layout: layout that the engine reads on a device, from the device's name.
        kv_bytes: device bytes of KV that one sequence needs, from a description's ``config``, a precision and the
            sequence's tokens.
        weights_bytes: bytes of its artifact, from a description's ``config`` and a precision.
        factory: the worker's half, an ``EngineFactory``, as ``"module:function"``.
        sleep, elastic_kv, warm, adapters: as in ``Capabilities``.
        own_worker: whether each deployment has workers of its own, one on each device; otherwise one worker on each
            device has all of them.
    """

    name: str
    describe: Callable[[Path], ModelDescription]
    outline: Callable[[Mapping[str, Any]], tuple[dict[str, Any], str, int]]
    prepare: Prepare
    layout: Callable[[str], str]
    kv_bytes: Callable[[Mapping[str, Any], str, int], int]
    weights_bytes: Callable[[Mapping[str, Any], str], int]
    factory: str
    sleep: bool
    elastic_kv: bool
    warm: WarmPlace
    adapters: bool
    own_worker: bool = False

    def capabilities(self, device: str) -> Capabilities:
        """Capabilities of this process as a worker on ``device``."""
        return Capabilities(
            engine=self.name,
            device=device,
            sleep=self.sleep,
            elastic_kv=self.elastic_kv,
            warm=self.warm,
            adapters=self.adapters,
            pid=os.getpid(),
        )

    def load_factory(self) -> EngineFactory:
        """Imports the worker's half. For workers only."""
        module, _, function = self.factory.partition(":")
        factory: EngineFactory = getattr(import_module(module), function)
        return factory


def engine_kind(name: str) -> EngineKind:
    """Returns the row of an engine.

    Raises:
        ConfigurationError: there is none of that name.
    """
    if name not in KINDS:
        raise ConfigurationError(f"no engine {name!r}; there are {', '.join(sorted(KINDS))}", param="engine")
    return KINDS[name]


def _describe_checkpoint(folder: Path) -> ModelDescription:
    from engines.checkpoint.model_config import describe

    return describe(folder)


def _outline_checkpoint(raw: Mapping[str, Any]) -> tuple[dict[str, Any], str, int]:
    from engines.checkpoint.outline import outline

    config, precision = outline(raw)
    return config.to_dict(), precision, config.max_model_len


def _plain_layout(device: str) -> str:
    return PLAIN_LAYOUT


async def _pack_checkpoint(
    packed_root: Path,
    layout: str,
    folder: Path,
    digest: str,
    precision: str,
    on_progress: Callable[[int, int], None],
) -> ArtifactRef:
    from engines.checkpoint.packer import ensure_packed

    return await ensure_packed(folder, digest, precision, packed_root, on_progress, layout)


def _checkpoint_kv_bytes(config: Mapping[str, Any], precision: str, num_tokens: int) -> int:
    from engines.checkpoint.model_config import sequence_kv_bytes

    return sequence_kv_bytes(config, precision, num_tokens)


def _packed_checkpoint_bytes(config: Mapping[str, Any], precision: str) -> int:
    from engines.checkpoint.outline import packed_bytes

    return packed_bytes(config, precision)


def _describe_folder(folder: Path) -> ModelDescription:
    from engines.checkpoint.folder import describe_folder

    return describe_folder(folder)


def _outline_folder(raw: Mapping[str, Any]) -> tuple[dict[str, Any], str, int]:
    from engines.checkpoint.folder import outline_folder

    return outline_folder(raw)


async def _take_folder(
    packed_root: Path,
    layout: str,
    folder: Path,
    digest: str,
    precision: str,
    on_progress: Callable[[int, int], None],
) -> ArtifactRef:
    from engines.checkpoint.folder import folder_artifact

    return await folder_artifact(packed_root, layout, folder, digest, precision, on_progress)


def _folder_kv_bytes(config: Mapping[str, Any], precision: str, num_tokens: int) -> int:
    from engines.checkpoint.folder import folder_kv_bytes

    return folder_kv_bytes(config, precision, num_tokens)


def _folder_weights_bytes(config: Mapping[str, Any], precision: str) -> int:
    from engines.checkpoint.folder import folder_weights_bytes

    return folder_weights_bytes(config, precision)


_TORCH = EngineKind(
    name="torch",
    describe=_describe_checkpoint,
    outline=_outline_checkpoint,
    prepare=_pack_checkpoint,
    layout=_plain_layout,
    kv_bytes=_checkpoint_kv_bytes,
    weights_bytes=_packed_checkpoint_bytes,
    factory="engines.torch.factory:torch_engine",
    sleep=True,
    elastic_kv=True,
    warm=WarmPlace.HOST_CACHE,
    adapters=False,
)
# Stands in for the torch engine, so it differs in nothing that the server sees.
_NULL = replace(_TORCH, name="null", factory="engines.null:null_engine")
_TENSORRT_LLM = EngineKind(
    name="tensorrt_llm",
    describe=_describe_folder,
    outline=_outline_folder,
    prepare=_take_folder,
    layout=_plain_layout,
    kv_bytes=_folder_kv_bytes,
    weights_bytes=_folder_weights_bytes,
    factory="engines.tensorrt_llm.factory:tensorrt_llm_engine",
    sleep=True,  # with versions of the package that can; each worker says so of its own
    elastic_kv=False,
    warm=WarmPlace.WORKER,
    adapters=False,
    own_worker=True,  # a process of theirs has one model
)

KINDS: Mapping[str, EngineKind] = {kind.name: kind for kind in (_TORCH, _NULL, _TENSORRT_LLM)}
