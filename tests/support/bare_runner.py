"""The torch engine's real runner, pool and block store over a model that computes nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from engines.api import StepOutput
from engines.config import TorchEngineConfig
from engines.torch.kv.swap import KVSwap, SwapSpace
from engines.torch.model.kv_view import KVCacheView
from engines.torch.scheduling.counters import RunnerCounters
from engines.torch.scheduling.requests import SequenceLimits
from engines.torch.scheduling.runner import SequenceRunner
from engines.torch.scheduling.shared_kv import SharedKV
from memory_manager.arena.host_arena import HostArena
from memory_manager.kv.block_store import BlockStore
from memory_manager.kv.pool import KVPool
from memory_manager.kv_spec import PAGE_BYTES, KVGroup
from support.kv_moves import move_nothing

__all__ = ["MAX_LEN", "VOCAB_SIZE", "runner_without_a_model", "step"]

VOCAB_SIZE = 8
GROUP = KVGroup((0,), "full", PAGE_BYTES // 32, block_tokens=4)  # 8 blocks a page
MAX_LEN = 64
NUM_PAGES = 3
CPU = torch.device("cpu")


@contextmanager
def runner_without_a_model() -> Iterator[SequenceRunner]:
    arena = HostArena((NUM_PAGES + 1) * PAGE_BYTES)
    pool = KVPool(arena, (NUM_PAGES + 1) * PAGE_BYTES)
    pool.set_limit((NUM_PAGES + 1) * PAGE_BYTES)
    cache = BlockStore(pool)
    cache.add_model("m", (GROUP,), 2 * PAGE_BYTES, None, move_nothing)
    view = KVCacheView(arena.tensor(pool.address_range), (GROUP,), torch.float32, 1, PAGE_BYTES // 32 // 8)
    runners: list[SequenceRunner] = []
    runner = SequenceRunner(
        "m",
        lambda batch: torch.zeros(len(batch.logits_rows), 1),
        lambda states: torch.zeros(len(states), VOCAB_SIZE),
        limits=SequenceLimits(VOCAB_SIZE, MAX_LEN, (GROUP,), NUM_PAGES * PAGE_BYTES),
        eos_ids=(),
        cache=cache,
        shared=SharedKV(pool, lambda: runners),
        swap=KVSwap(view, SwapSpace(0, CPU)),
        artifact=b"",
        device=CPU,
        config=TorchEngineConfig(max_running_sequences=6, max_tokens_per_step=24),
        counters=RunnerCounters(),
        clock=time.perf_counter,
    )
    runners.append(runner)
    yield runner
    arena.close()


def step(runner: SequenceRunner, number: int) -> StepOutput | None:
    """Runs one step; None if nothing can run."""
    return runner.finish(number) if runner.launch() else None
