"""The cost of KV that floats: handing it from one model to another, and the tax on one model alone.

One engine in this process. The models of the handover compute next to nothing and have the KV of Llama-3-8B
(128 KiB a token), so that real sequences fill gigabytes in seconds.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.bare_engine import BareEngine, PackedModel
from benchmarks.batching import Workload
from benchmarks.fixed_arena import FixedArena
from engines.checkpoint.packing import pack
from engines.config import TorchEngineConfig
from memory_manager.arena.factory import arena_on
from memory_manager.arena.host_arena import HostArena
from memory_manager.kv_spec import PAGE_BYTES, kv_bytes_for_tokens
from mooring.errors import MooringError
from ops.samples.random_weights import Precision, write_random_weights
from ops.samples.shapes import SHAPES

__all__ = ["Handover", "SingleModel", "measure_handover", "measure_single_model", "pack_random"]

_CHEAP_SHAPE: dict[str, Any] = {
    **SHAPES["SmolLM2-135M"],
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 32,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 512,
}
_PROMPT_TOKENS, _OUTPUT_TOKENS = 432, 16  # 27 pages and one more
_HANDED_OVER = 0.9
_AT_ONCE = 16
_LEASE_BEFORE = PAGE_BYTES  # the null page, from which an engine starts


@dataclass(frozen=True, slots=True)
class Handover:
    """KV that goes from one model, which holds all of it, to another, which takes 90 %.

    Attributes:
        seconds: seconds of letting go and of taking, without computing anything.
        let_go_s: seconds of these until the first model held none.
        live_before_bytes: bytes of the blocks that the first model's sequences held.
        live_after_bytes: bytes of the blocks that the second model's sequences held in the end.
        pool_bytes: the lease, less the null page.
    """

    seconds: float
    let_go_s: float
    live_before_bytes: int
    live_after_bytes: int
    pool_bytes: int


def pack_random(root: Path, name: str, shape: dict[str, Any], precision: Precision, seed: int) -> PackedModel:
    """Packs a model of ``shape`` with random weights and without end-of-sequence."""
    source = root / name
    source.mkdir(parents=True)
    write_random_weights({**shape, "bos_token_id": None, "eos_token_id": None}, source, precision, seed)
    packed = root / f"{name}-packed"
    pack(source, packed, precision, digest=f"{name}-{seed}")
    return PackedModel.read(packed)


def measure_handover(
    scratch: Path, live_bytes: int, num_threads: int | None = None, device: str = "cpu"
) -> Handover:
    """Puts the first model to sleep while its sequences run, as the controller does to make room; then sequences of
    the second model take the KV, which those that are parked give up. Taking is timed by the calls of the pool and
    the arena, since the second model's own prefill lies between them.

    Args:
        live_bytes: least bytes that the first model's sequences hold before.
    """
    models = [pack_random(scratch, f"handover-{name}", _CHEAP_SHAPE, "bf16", 0) for name in ("a", "b")]
    sequence_bytes = kv_bytes_for_tokens(models[0].groups, _PROMPT_TOKENS + _OUTPUT_TOKENS)
    num_sequences = -(-live_bytes // (sequence_bytes - PAGE_BYTES))
    pool_bytes = num_sequences * sequence_bytes
    capacity_bytes = pool_bytes + 2 * PAGE_BYTES + sum(model.weights_bytes for model in models)
    arena = arena_on(device, capacity_bytes, stock_limit_bytes=capacity_bytes)
    # All sequences are prefilled in about four steps, before the first of them ends.
    config = TorchEngineConfig(
        device=device,
        max_running_sequences=num_sequences,
        max_tokens_per_step=num_sequences * _PROMPT_TOKENS // 4,
        cpu_wake="copy",
        num_threads=num_threads,
    )
    engine = BareEngine(arena, config)
    try:
        engine.lease(pool_bytes + PAGE_BYTES)
        for name, model in zip("ab", models, strict=True):
            engine.load(name, model)
        _fill(engine, "a", num_sequences, live_bytes)
        live_before_bytes = engine.live_kv_bytes("a")
        if device != "cpu":
            torch.cuda.synchronize(device)  # earlier work is no part of letting go
        started_s = time.perf_counter()
        engine.engine.sleep("a")
        let_go_s = time.perf_counter() - started_s
        wanted_bytes = int(_HANDED_OVER * pool_bytes)
        with engine.bookkeeping() as taking:
            _fill(engine, "b", num_sequences, wanted_bytes)
        live_after_bytes = engine.live_kv_bytes("b")
    finally:
        engine.close()
    return Handover(let_go_s + taking.seconds, let_go_s, live_before_bytes, live_after_bytes, pool_bytes)


def _fill(engine: BareEngine, name: str, num_sequences: int, live_bytes: int) -> None:
    """Steps until the model's sequences hold ``live_bytes`` of KV. No two prompts are alike."""
    for number in range(num_sequences):
        prompt = [(number + position * (number % 7 + 1)) % 256 for position in range(_PROMPT_TOKENS - 1)]
        engine.submit(name, [number % 256, *prompt], _OUTPUT_TOKENS)
    for _ in range(100 * num_sequences):
        if engine.live_kv_bytes(name) >= live_bytes:
            return
        engine.step()
    raise MooringError(f"{name} holds {engine.live_kv_bytes(name)} bytes of KV and should hold {live_bytes}")


@dataclass(slots=True)
class SingleModel:
    """One model alone: output tokens per second of each run, and the cost of the books.

    Attributes:
        elastic: rates with KV that comes page by page.
        fixed: rates with all KV taken at the start.
        books_share: share of all steps' time that is spent in the KV pool and the arena.
        arena_share: share of all steps' time that is spent in the arena alone.
    """

    elastic: list[float] = field(default_factory=list)
    fixed: list[float] = field(default_factory=list)
    books_share: float = 0.0
    arena_share: float = 0.0

    @property
    def share(self) -> float:
        return statistics.median(self.elastic) / statistics.median(self.fixed)


def measure_single_model(
    model: PackedModel, num_requests: int, repeats: int, num_threads: int | None = None, seed: int = 0
) -> SingleModel:
    """Runs the same requests, 16 at once, on both kinds of memory in turn.

    Before each run the elastic engine's KV shrinks to nothing and may then grow again, so each run pays for
    every page that it takes.
    """
    kv_bytes = _AT_ONCE * kv_bytes_for_tokens(model.groups, 512) + PAGE_BYTES
    capacity_bytes = kv_bytes + model.weights_bytes
    config = TorchEngineConfig(kv_range_bytes=kv_bytes, num_threads=num_threads, cpu_wake="copy")
    elastic = BareEngine(HostArena(capacity_bytes, stock_limit_bytes=capacity_bytes), config)
    fixed = BareEngine(FixedArena(capacity_bytes), config)
    found = SingleModel()
    workload = Workload.draw(num_requests, model.vocab_size, seed)
    try:
        for engine in (elastic, fixed):
            engine.lease(kv_bytes)
            engine.load("model", model)
            _run(engine, Workload.draw(_AT_ONCE, model.vocab_size, seed + 1))  # warms everything up
        for _ in range(repeats):
            for engine, rates in ((elastic, found.elastic), (fixed, found.fixed)):
                _start_over(engine, kv_bytes)
                rates.append(workload.total_output_tokens / _run(engine, workload))
        found.books_share, found.arena_share = _shares(elastic, workload, kv_bytes)
    finally:
        elastic.close()
        fixed.close()
    return found


def _shares(engine: BareEngine, workload: Workload, kv_bytes: int) -> tuple[float, float]:
    _start_over(engine, kv_bytes)
    with engine.bookkeeping() as books, engine.arena_time() as arena:
        seconds = _run(engine, workload)
    return books.seconds / seconds, arena.seconds / seconds


def _start_over(engine: BareEngine, kv_bytes: int) -> None:
    """Takes all KV away, cached blocks included, and leases it again."""
    engine.lease(_LEASE_BEFORE)
    engine.lease(kv_bytes)


def _run(engine: BareEngine, workload: Workload) -> float:
    """Seconds of all steps, with ``_AT_ONCE`` sequences in flight."""
    waiting = list(zip(workload.prompts, workload.output_tokens, strict=True))[::-1]
    in_flight, seconds = 0, 0.0
    while waiting or in_flight:
        while waiting and in_flight < _AT_ONCE:
            prompt, num_tokens = waiting.pop()
            engine.submit("model", prompt, num_tokens)
            in_flight += 1
        started_s = time.perf_counter()
        in_flight -= len(engine.step())
        seconds += time.perf_counter() - started_s
    return seconds
