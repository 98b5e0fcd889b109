"""The engines that the contract is tried on: how each is made, what it loads, and what it has no form of."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from engines.api import LoadSpec
from engines.config import NullEngineConfig
from engines.null import NullEngine
from memory_manager.kv_spec import PAGE_BYTES, round_to_pages
from memory_manager.ports import ArtifactRef, DeploymentSpec
from support.small_checkpoint import write_checkpoint
from support.step_driver import StepDriver
from support.tensorrt_llm_double import LlmDriver, double, manifest_of
from support.torch_engines import VOCAB_SIZE, engine_driver, tiny_model

__all__ = ["ENGINES", "ContractEngine", "contract_engine"]

_NULL_WEIGHTS = bytes(3 << 20)


@dataclass(frozen=True)
class ContractEngine:
    """An engine under the contract.

    Attributes:
        name: as ``engines.kinds`` has it.
        driving: makes one, and ends it.
        manifest_json: of the model that it loads.
        weights: makes a descriptor of the model's weights.
        weights_bytes: lease that they need.
        vocab_size: of the model.
        lacks: sampling parameters that it refuses.
        draws: whether what it says depends on how tokens are drawn.
        elastic: whether its KV lease may change while replicas are there.
        sleeps: whether a replica can give up its weights and come back.
        repeats: whether a sequence that comes again says just what it would have said.
        max_model_len: that it is asked for.
        settings: of its worker.
        program: its worker, as in ``WorkerSpec``.
        folder: the checkpoint that it reads by itself; None if its weights are a file.
    """

    name: str
    driving: Callable[[], AbstractContextManager[StepDriver]]
    manifest_json: bytes
    weights: Callable[[], int]
    weights_bytes: int
    vocab_size: int
    lacks: frozenset[str] = frozenset()
    draws: bool = True
    elastic: bool = True
    sleeps: bool = True
    repeats: bool = True
    max_model_len: int = 256
    settings: Mapping[str, Any] = field(default_factory=dict)
    program: tuple[str, ...] = ("-m", "engines.worker")
    folder: Path | None = None

    def spec(self, replica_id: str = "m", **changes: Any) -> LoadSpec:
        fields = {"max_model_len": self.max_model_len, "weights_lease_bytes": self.weights_bytes, **changes}
        return LoadSpec(replica_id, self.manifest_json, **fields)

    def load(self, driver: StepDriver, replica_id: str = "m", **changes: Any) -> int:
        """Loads a replica; returns the bytes that it holds."""
        return driver.engine.load(self.spec(replica_id, **changes), self.weights())

    def deployment(self, name: str, folder: Path) -> DeploymentSpec:
        """Its model as the memory manager knows it.

        Args:
            folder: takes the file of its weights.
        """
        if self.folder is not None:
            ref = ArtifactRef(f"key-{name}", self.folder, 1, self.manifest_json, is_folder=True)
            return DeploymentSpec(name, ref, self.weights_bytes, 0, 2 * PAGE_BYTES, self.max_model_len)
        path = folder / "weights.bin"
        with os.fdopen(self.weights(), "rb") as weights:
            weights.seek(0)
            path.write_bytes(weights.read())
        artifact = ArtifactRef(f"key-{name}", path, path.stat().st_size, self.manifest_json)
        return DeploymentSpec(name, artifact, self.weights_bytes, 0, 2 * PAGE_BYTES, self.max_model_len)


def _torch() -> ContractEngine:
    model = tiny_model("llama")
    return ContractEngine(
        "torch",
        engine_driver,
        model.manifest.to_json(),
        model.host_copy,
        round_to_pages(model.manifest.num_bytes),
        VOCAB_SIZE,
        settings={"num_threads": 1},
    )


@contextmanager
def _null_driver() -> Iterator[StepDriver]:
    driver = StepDriver(NullEngine(NullEngineConfig()))
    driver.engine.set_lease(1 << 30, 1)
    yield driver


def _null() -> ContractEngine:
    def weights() -> int:
        descriptor = os.memfd_create("weights")
        os.write(descriptor, _NULL_WEIGHTS)
        return descriptor

    num_bytes = round_to_pages(len(_NULL_WEIGHTS))
    return ContractEngine(
        "null", _null_driver, b"{}", weights, num_bytes, 1 << 16, draws=False, settings={"step_time_s": 0.005}
    )


def _tensorrt_llm() -> ContractEngine:
    """The adapter on the double of its package."""
    root = Path(tempfile.mkdtemp(prefix="mooring-contract-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    folder = write_checkpoint(root / "m")
    manifest = manifest_of(folder)

    @contextmanager
    def driving() -> Iterator[StepDriver]:
        with double():
            driver = LlmDriver(folder)
            yield driver
            driver.engine.close()

    return ContractEngine(
        "tensorrt_llm",
        driving,
        manifest.to_json(),
        lambda: os.open(folder, os.O_RDONLY),
        round_to_pages(manifest.num_bytes),
        manifest.config["vocab_size"],
        lacks=frozenset({"prompt_logprobs", "bad_words_ids"}),
        elastic=False,
        program=(str(Path(__file__).with_name("tensorrt_llm_worker.py")),),
        folder=folder,
    )


@cache
def contract_engine(name: str) -> ContractEngine:
    """The engine of this name; made once."""
    return ENGINES[name]()


ENGINES: dict[str, Callable[[], ContractEngine]] = {
    "torch": _torch,
    "null": _null,
    "tensorrt_llm": _tensorrt_llm,
}
"""By name."""
