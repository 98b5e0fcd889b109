"""A torch engine in this process with one resident model, for benchmarks of the step loop alone."""

from __future__ import annotations

import itertools
import os
import tempfile
from pathlib import Path

from engines.api import FinishReason, LoadSpec, SequenceRequest, run_step
from engines.artifact import Manifest
from engines.checkpoint.model_config import ModelConfig, describe
from engines.checkpoint.packing import MANIFEST_NAME, WEIGHTS_NAME, pack
from engines.config import TorchEngineConfig
from engines.torch.engine import TorchEngine
from memory_manager.arena.host_arena import HostArena
from memory_manager.kv_spec import round_to_pages
from mooring.errors import MooringError
from mooring.units import GIB
from ops.samples.random_weights import write_random_weights
from ops.samples.shapes import SHAPES

__all__ = ["LoadedEngine", "load_engine"]

DEFAULT_SHAPE = "SmolLM2-135M"
REPLICA_ID = "model/0"


class LoadedEngine:
    """One model in one engine, driven step by step.

    Args:
        packed: folder of the packed artifact.
        description: the report's words for the model.
        kv_bytes: KV lease; enough that no benchmark preempts.
    """

    def __init__(self, packed: Path, description: str, kv_bytes: int = 2 * GIB) -> None:
        self.description = description
        self.replica_id = REPLICA_ID
        manifest_json = (packed / MANIFEST_NAME).read_bytes()
        manifest = Manifest.from_json(manifest_json)
        config = ModelConfig.from_dict(manifest.config)
        self.vocab_size = config.vocab_size
        weights_bytes = round_to_pages(manifest.num_bytes)
        kv_bytes = round_to_pages(kv_bytes)
        self._engine = TorchEngine(TorchEngineConfig(), HostArena(weights_bytes + kv_bytes))
        spec = LoadSpec(
            replica_id=REPLICA_ID,
            manifest_json=manifest_json,
            max_model_len=config.max_model_len,
            weights_lease_bytes=weights_bytes,
        )
        self._engine.set_lease(kv_bytes, revision=1)
        self._engine.load(spec, os.open(packed / WEIGHTS_NAME, os.O_RDONLY))
        self._ids = itertools.count(1)

    def next_sequence_id(self) -> int:
        return next(self._ids)

    def submit(self, request: SequenceRequest) -> None:
        self._engine.submit(request)

    def step_and_count_finished(self) -> int:
        """Runs one step; returns the number of sequences that ended with it. Raises ``MooringError`` if one
        failed."""
        ended = [end for output in run_step(self._engine) for end in output.finished]
        for end in ended:
            if end.reason is FinishReason.ERROR:
                raise MooringError(f"a sequence of the benchmark failed: {end.error_message}")
        return len(ended)


def load_engine(model: Path | None) -> LoadedEngine:
    """An engine with ``model`` (a Hugging Face folder) resident in the checkpoint's own precision; by default
    random weights of SmolLM2-135M's shape in bf16."""
    with tempfile.TemporaryDirectory(prefix="mooring-bench-") as scratch:
        folder = model
        if folder is None:
            folder = Path(scratch) / "random"
            folder.mkdir()
            write_random_weights(SHAPES[DEFAULT_SHAPE], folder, "bf16", seed=0)
        precision = describe(folder).default_precision
        packed = Path(scratch) / "packed"
        pack(folder, packed, precision, digest="benchmark")
        name = folder.name if model is not None else f"random weights of {DEFAULT_SHAPE}'s shape"
        return LoadedEngine(packed, f"{name} ({precision})")
