"""TensorRT-LLM's double in this process, engines on it, and the check of the adapter against the record."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from engines.api import LoadSpec
from engines.checkpoint.folder import FolderManifest, describe_folder
from engines.config import TensorRtLlmConfig
from engines.link.flight_recorder import FlightRecorder
from engines.tensorrt_llm.engine import TensorRtLlmEngine
from engines.tensorrt_llm.surface import load_package
from memory_manager.kv_spec import round_to_pages
from memory_manager.stats import WorkerStats
from ops.tensorrt_llm_record import uses
from support.step_driver import StepDriver

__all__ = ["DOUBLES", "LlmDriver", "double", "manifest_of", "problems"]

DOUBLES = Path(__file__).with_name("doubles")
_PACKAGE = "tensorrt_llm"


def problems(record: Any) -> list[str]:
    """What stands between the adapter and a record: uses that it does not state, and required arguments that the
    adapter does not give."""
    used = uses()
    found = [f"{use} is not in the record" for use in sorted(used - record.names())]
    for call, stated in record.calls.items():
        for argument, each in stated.items():
            if "default" not in each and f"{call}({argument})" not in used:
                found.append(f"{call}({argument}) is required and never given")
    return found


@contextmanager
def double(version: str = "1.4.0") -> Iterator[Any]:
    """The double as the installed package; yields its module ``llmapi``, whose ``control`` tests write."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in sys.modules if name.partition(".")[0] == _PACKAGE]:
            patch.delitem(sys.modules, name)
        patch.syspath_prepend(str(DOUBLES))
        patch.setenv("TENSORRT_LLM_DOUBLE_VERSION", version)
        try:
            yield import_module(f"{_PACKAGE}.llmapi")
        finally:
            for name in [name for name in sys.modules if name.partition(".")[0] == _PACKAGE]:
                del sys.modules[name]


def manifest_of(folder: Path) -> FolderManifest:
    """The manifest of a checkpoint folder."""
    found = describe_folder(folder)
    num_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return FolderManifest(folder, found.default_precision, found.config, num_bytes)


class LlmDriver(StepDriver):
    """An engine on the double, and everything it has said so far."""

    engine: TensorRtLlmEngine

    def __init__(
        self,
        folder: Path,
        config: TensorRtLlmConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
        recorder: FlightRecorder | None = None,
    ) -> None:
        config = config or TensorRtLlmConfig()
        super().__init__(TensorRtLlmEngine(config, load_package(), "cuda:0", recorder, clock))
        self.folder = folder

    def spec(self, replica_id: str = "m", **changes: Any) -> LoadSpec:
        manifest = manifest_of(self.folder)
        fields = {"max_model_len": 256, "weights_lease_bytes": round_to_pages(manifest.num_bytes), **changes}
        return LoadSpec(replica_id, manifest.to_json(), **fields)

    def load(self, replica_id: str = "m", **changes: Any) -> int:
        return self.engine.load(self.spec(replica_id, **changes), os.open(self.folder, os.O_RDONLY))

    def submit(self, sequence_id: int, prompt: Sequence[int] = (5, 6, 7), *args: Any, **given: Any) -> None:
        super().submit(sequence_id, prompt, *args, **{"max_tokens": 8, **given})

    def run_until_said(self, sequence_id: int, num_tokens: int, timeout_s: float = 30.0) -> None:
        """Steps until a sequence has so many tokens."""
        until_s = time.monotonic() + timeout_s
        while len(self.tokens[sequence_id]) < num_tokens:
            assert time.monotonic() < until_s, "tokens are missing"
            self.step()

    def run_until_figures(self, timeout_s: float = 30.0) -> WorkerStats:
        """Steps until the engine has figures of KV blocks in use; returns them."""
        until_s = time.monotonic() + timeout_s
        while not (stats := self.engine.stats()).replicas[0].kv_live_bytes:
            assert time.monotonic() < until_s, "figures are missing"
            self.step()
        return stats
