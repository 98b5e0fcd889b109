"""Tiny random models, as transformers has them and as the torch engine loads them, and engines for them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from engines.api import LoadSpec
from engines.artifact import Manifest
from engines.checkpoint.model_config import ModelConfig
from engines.checkpoint.packing import MANIFEST_NAME, WEIGHTS_NAME, pack
from engines.config import TorchEngineConfig
from engines.link.flight_recorder import FlightRecorder
from engines.torch.engine import TorchEngine
from memory_manager.arena.host_arena import HostArena
from memory_manager.kv_spec import PAGE_BYTES, round_to_pages
from memory_manager.ports import LeaseStatus
from mooring.units import MIB
from support.step_driver import StepDriver

__all__ = ["KINDS", "EngineDriver", "TinyModel", "engine_driver", "tiny_model"]

VOCAB_SIZE = 300
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 128,  # wide, so that a page is full after a few hundred tokens
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "qwen2": {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1},
    "qwen3": {},
    "mistral": {"sliding_window": 24},
}


@dataclass(frozen=True)
class TinyModel:
    """One model twice: ``reference`` of transformers, and its packed weights."""

    reference: Any
    config: ModelConfig
    manifest: Manifest
    packed: bytes

    def host_copy(self) -> int:
        """A descriptor of the packed weights, as a worker is handed one."""
        fd = os.memfd_create("host-copy")
        os.write(fd, self.packed)
        return fd

    def generate(self, prompt: Sequence[int], num_tokens: int) -> list[int]:
        """What transformers generates greedily."""
        ids = self.reference.generate(
            torch.tensor([list(prompt)]), do_sample=False, max_new_tokens=num_tokens
        )
        return ids[0, len(prompt) :].tolist()

    @torch.inference_mode()
    def logprobs(self, prompt: Sequence[int], output: Sequence[int]) -> torch.Tensor:
        """Transformers' log-probabilities at each output token's place, [num_output, vocab]."""
        ids = torch.tensor([[*prompt, *output]])
        return self.reference(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)

    def behind_best(self, prompt: Sequence[int], output: Sequence[int]) -> list[float]:
        """By how much each output token's logit lies behind transformers' best one at its place. All zeros
        mean that ``output`` is what transformers generates, by induction, at the cost of one forward."""
        logprobs = self.logprobs(prompt, output)
        behind = logprobs.amax(-1) - logprobs.gather(-1, torch.tensor(output)[:, None])[:, 0]
        return behind.tolist()


@lru_cache
def tiny_model(kind: str, seed: int = 0) -> TinyModel:
    from transformers import AutoConfig, AutoModelForCausalLM

    hf_config = AutoConfig.for_model(kind, **_SHAPE, **KINDS[kind])
    torch.manual_seed(seed)
    reference = AutoModelForCausalLM.from_config(hf_config).float().eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.1)
            elif not bool((parameter == 1).all()):
                parameter.normal_(0, 0.3)  # biases, which are made zero
    reference.generation_config.eos_token_id = None
    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(Path(folder) / "checkpoint")
        pack(Path(folder) / "checkpoint", Path(folder) / "packed", "fp32", digest="0" * 64)
        manifest = Manifest.from_json((Path(folder) / "packed" / MANIFEST_NAME).read_bytes())
        packed = (Path(folder) / "packed" / WEIGHTS_NAME).read_bytes()
    return TinyModel(reference, ModelConfig.from_dict(manifest.config), manifest, packed)


@dataclass
class EngineDriver(StepDriver):
    """The torch engine, and everything it has said so far."""

    engine: TorchEngine
    revision: int = 0

    def load(
        self,
        model: TinyModel,
        replica_id: str = "m",
        *,
        max_model_len: int = 256,
        kv_guarantee_bytes: int = 0,
        kv_cap_bytes: int | None = None,
        from_file: bool = False,
    ) -> int:
        spec = LoadSpec(
            replica_id,
            model.manifest.to_json(),
            max_model_len,
            round_to_pages(model.manifest.num_bytes),
            kv_guarantee_bytes=kv_guarantee_bytes,
            kv_cap_bytes=kv_cap_bytes,
            from_file=from_file,
        )
        return self.engine.load(spec, model.host_copy())

    def lease_pages(self, num_pages: int) -> Any:
        """Leases so many pages beside the null page."""
        self.revision += 1
        return self.engine.set_lease((num_pages + 1) * PAGE_BYTES, self.revision)

    def shrink_to(self, num_pages: int) -> None:
        """Leases so many pages and steps until no more are held."""
        if self.lease_pages(num_pages) is LeaseStatus.DEFERRED:
            self.shrink()
        assert self.engine.stats().kv_bytes <= (num_pages + 1) * PAGE_BYTES

    def shrink(self, max_steps: int = 200) -> int:
        """Steps until the lease is applied, and asks for it after each; returns the number of steps."""
        for number in range(1, max_steps + 1):
            self.step()
            if (
                self.engine.set_lease(self.engine.stats().kv_lease_bytes, self.revision)
                is LeaseStatus.APPLIED
            ):
                return number
        raise AssertionError(f"the lease is not applied after {max_steps} steps")

    def run(self, timeout_s: float = 120.0) -> None:
        super().run(timeout_s)
        self.engine.check_integrity()

    def preemptions(self) -> int:
        return sum(replica.preemptions_total for replica in self.engine.stats().replicas)


@contextmanager
def engine_driver(
    *,
    capacity_bytes: int = 64 * MIB,
    lease_pages: int = 16,
    recorder: FlightRecorder | None = None,
    **config: Any,
) -> Iterator[EngineDriver]:
    """An engine over a host arena, its books checked and its memory given back at the end. The arena's pages
    are as the worst owner leaves them: NaN in every dtype, so that reading what nobody wrote shows."""
    arena = HostArena(capacity_bytes, stock_limit_bytes=capacity_bytes)
    try:
        used_before = arena.reserve(capacity_bytes)
        arena.commit(used_before, 0, capacity_bytes // PAGE_BYTES)
        arena.tensor(used_before).fill_(0xFF)
        arena.free_range(used_before)
        settings = {
            "max_tokens_per_step": 64,
            "max_running_sequences": 16,
            "copy_chunk_bytes": 50_000,
            "num_threads": 1,
            **config,
        }
        driver = EngineDriver(TorchEngine(TorchEngineConfig(**settings), arena, recorder=recorder))
        driver.lease_pages(lease_pages)
        yield driver
        driver.engine.check_integrity()
        driver.engine.close()
        assert arena.committed_bytes == 0
    finally:
        arena.close()
