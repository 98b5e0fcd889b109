"""A torch engine in this process with any number of models, driven call by call and step by step."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engines.api import (
    Finished,
    FinishReason,
    LoadSpec,
    SamplingParams,
    SequenceRequest,
    StepOutput,
    run_step,
)
from engines.artifact import Manifest
from engines.checkpoint.model_config import ModelConfig, kv_groups
from engines.checkpoint.packing import MANIFEST_NAME, WEIGHTS_NAME
from engines.config import TorchEngineConfig
from engines.torch.engine import TorchEngine
from memory_manager.arena.protocol import Arena
from memory_manager.kv_spec import PAGE_BYTES, KVGroup, round_to_pages
from memory_manager.ports import LeaseStatus
from mooring.errors import MooringError

__all__ = ["BareEngine", "PackedModel", "Stopwatch"]


@dataclass(frozen=True, slots=True)
class PackedModel:
    """A packed artifact on disk.

    Attributes:
        weights_bytes: whole pages of a replica's weights.
        groups: KV groups of the model in the artifact's precision.
    """

    folder: Path
    manifest_json: bytes
    num_bytes: int
    vocab_size: int
    max_model_len: int
    groups: tuple[KVGroup, ...]

    @classmethod
    def read(cls, folder: Path) -> PackedModel:
        manifest_json = (folder / MANIFEST_NAME).read_bytes()
        manifest = Manifest.from_json(manifest_json)
        config = ModelConfig.from_dict(manifest.config)
        return cls(
            folder,
            manifest_json,
            manifest.num_bytes,
            config.vocab_size,
            config.max_model_len,
            kv_groups(config, 2 if manifest.precision == "bf16" else 4),
        )

    @property
    def weights_path(self) -> Path:
        return self.folder / WEIGHTS_NAME

    @property
    def weights_bytes(self) -> int:
        return round_to_pages(self.num_bytes)


class BareEngine:
    """The engine without its worker process.

    Args:
        arena: the engine's arena, closed with it.
    """

    def __init__(self, arena: Arena, config: TorchEngineConfig | None = None) -> None:
        self.arena = arena
        self.engine = TorchEngine(config or TorchEngineConfig(), arena)
        self._revisions, self._ids = itertools.count(1), itertools.count(1)

    def load(
        self,
        name: str,
        model: PackedModel,
        *,
        host_copy_fd: int | None = None,
        kv_guarantee_bytes: int = PAGE_BYTES,
    ) -> None:
        """Makes a replica resident.

        Args:
            host_copy_fd: descriptor that the engine owns from here on; by default the packed file itself.
        """
        fd = os.open(model.weights_path, os.O_RDONLY) if host_copy_fd is None else host_copy_fd
        spec = LoadSpec(
            name, model.manifest_json, model.max_model_len, model.weights_bytes, kv_guarantee_bytes
        )
        self.engine.load(spec, fd)

    def lease(self, kv_bytes: int) -> None:
        """Leases so much KV; returns when no more is held. What runs goes on meanwhile, and none of it may end."""
        revision = next(self._revisions)
        while self.engine.set_lease(kv_bytes, revision) is LeaseStatus.DEFERRED:
            self.step()

    def submit(self, name: str, prompt_ids: Sequence[int], max_tokens: int) -> None:
        sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        self.engine.submit(SequenceRequest(next(self._ids), name, np.array(prompt_ids, np.int32), sampling))

    def step(self) -> list[Finished]:
        """Runs one step; returns the sequences that ended with it. Raises ``MooringError`` if one failed."""
        return [end for output in self._outputs() for end in output.finished]

    def generate(self, name: str, prompt_ids: Sequence[int], max_tokens: int) -> list[int]:
        """The model's output tokens, with nothing else running."""
        self.submit(name, prompt_ids, max_tokens)
        token_ids: list[int] = []
        while len(token_ids) < max_tokens:
            token_ids += [token for output in self._outputs() for token in output.token_ids]
        return token_ids

    def _outputs(self) -> Sequence[StepOutput]:
        outputs = run_step(self.engine)
        for output in outputs:
            for end in output.finished:
                if end.reason is FinishReason.ERROR:
                    raise MooringError(f"a sequence of the benchmark failed: {end.error_message}")
        return outputs

    def live_kv_bytes(self, name: str) -> int:
        """Bytes of the blocks that the model's sequences hold."""
        return next(each.kv_live_bytes for each in self.engine.stats().replicas if each.replica_id == name)

    @property
    def weights_committed_bytes(self) -> int:
        """Device bytes of all replicas' weights, by the engine's own figure."""
        return sum(each.weights_bytes for each in self.engine.stats().replicas)

    @contextmanager
    def bookkeeping(self) -> Iterator[Stopwatch]:
        """Times all calls of the engine to its KV pool, its prefix cache and its arena while the block
        runs."""
        # The engine has no public access to these, and needs it only here.
        pool, cache = self.engine._pool, self.engine._cache
        watch = Stopwatch()
        with watch.on(cache, _CACHE_CALLS), watch.on(pool, _POOL_CALLS), watch.on(self.arena, _ARENA_CALLS):
            yield watch

    @contextmanager
    def arena_time(self) -> Iterator[Stopwatch]:
        """Times the arena alone while the block runs."""
        watch = Stopwatch()
        with watch.on(self.arena, _ARENA_CALLS):
            yield watch

    def close(self) -> None:
        self.engine.close()
        self.arena.close()


_CACHE_CALLS = (
    "can_allocate",
    "make_room",
    "allocate",
    "free",
    "find",
    "is_stored",
    "use",
    "store",
    "shared",
)
_POOL_CALLS = ("can_allocate", "allocate", "free", "set_limit", "let_leave")
_ARENA_CALLS = ("commit", "release")


class Stopwatch:
    """Seconds spent in methods of some objects; a call within another one counts once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.num_calls = 0
        self._depth = 0

    @contextmanager
    def on(self, target: Any, names: Sequence[str]) -> Iterator[None]:
        """Times the methods of this one object while the block runs."""
        before = {name: getattr(target, name) for name in names}
        for name, method in before.items():
            setattr(target, name, self._timed(method))
        try:
            yield
        finally:
            for name, method in before.items():
                setattr(target, name, method)

    def _timed(self, method: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            started_s = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.perf_counter() - started_s
                    self.num_calls += 1

        return call
