"""The torch engine's real runners, pool and block store over models that compute nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch

from engines.api import StepOutput
from engines.config import TorchEngineConfig
from engines.torch.kv.swap import KVSwap, SwapSpace
from engines.torch.model.kv_view import KVCacheView
from engines.torch.scheduling.counters import RunnerCounters
from engines.torch.scheduling.requests import SequenceLimits
from engines.torch.scheduling.runner import SequenceRunner
from engines.torch.scheduling.shared_kv import SharedKV, Sharer
from memory_manager.arena.host_arena import HostArena
from memory_manager.kv.block_store import BlockStore
from memory_manager.kv.pool import KVPool
from memory_manager.kv_spec import PAGE_BYTES, KVGroup

__all__ = [
    "MAX_LEN",
    "PAGE_TOKENS",
    "VOCAB_SIZE",
    "BareModel",
    "BareWorker",
    "runner_without_a_model",
    "step",
    "worker_without_models",
]

VOCAB_SIZE = 8
GROUP = KVGroup((0,), "full", PAGE_BYTES // 32, block_tokens=4)  # 8 blocks a page
PAGE_TOKENS = 32
MAX_LEN = 64
CPU = torch.device("cpu")


class BareModel(NamedTuple):
    """A model of a ``BareWorker``, named by its place among them."""

    max_model_len: int = MAX_LEN
    guarantee_pages: int = 0


@dataclass
class BareWorker:
    """Attributes: ``runners`` by the name of their models, and the pool that they share."""

    pool: KVPool
    cache: BlockStore
    runners: dict[str, SequenceRunner]

    def check(self) -> None:
        self.pool.check_integrity()
        self.cache.check_integrity()
        for runner in self.runners.values():
            runner.check_integrity()


@contextmanager
def worker_without_models(
    models: Sequence[BareModel],
    num_pages: int,
    preempt: Callable[[Sharer, int], None] = lambda sharer, slot: sharer.preempt(slot),
    *,
    max_tokens_per_step: int = 24,
    max_running_sequences: int = 6,
) -> Iterator[BareWorker]:
    """A worker with a lease of so many pages beside the null page. ``preempt``: as of ``SharedKV``."""
    arena = HostArena((num_pages + 1) * PAGE_BYTES)
    pool = KVPool(arena, (num_pages + 1) * PAGE_BYTES)
    pool.set_limit((num_pages + 1) * PAGE_BYTES)
    cache = BlockStore(pool)
    view = KVCacheView(arena.tensor(pool.address_range), (GROUP,), torch.float32, 1, PAGE_BYTES // 32 // 8)
    runners: dict[str, SequenceRunner] = {}
    shared = SharedKV(pool, runners.values, preempt)
    config = TorchEngineConfig(
        max_running_sequences=max_running_sequences, max_tokens_per_step=max_tokens_per_step
    )
    for name, model in zip(map(str, range(len(models))), models, strict=True):
        runners[name] = SequenceRunner(
            name,
            lambda batch: torch.zeros(len(batch.logits_rows), 1),
            lambda states: torch.zeros(len(states), VOCAB_SIZE),
            limits=SequenceLimits(VOCAB_SIZE, model.max_model_len, (GROUP,), num_pages * PAGE_BYTES),
            eos_ids=(),
            cache=cache,
            shared=shared,
            swap=KVSwap(view, SwapSpace(0, CPU)),
            artifact=b"",
            device=CPU,
            config=config,
            counters=RunnerCounters(),
            clock=time.perf_counter,
        )
        cache.add_model(name, (GROUP,), model.guarantee_pages * PAGE_BYTES, None, runners[name].moved)
    yield BareWorker(pool, cache, runners)
    arena.close()


@contextmanager
def runner_without_a_model() -> Iterator[SequenceRunner]:
    """The only runner of a worker with three pages of KV."""
    with worker_without_models([BareModel()], num_pages=3) as worker:
        yield worker.runners["0"]


def step(runner: SequenceRunner, number: int) -> StepOutput | None:
    """Runs one step; None if nothing can run."""
    return runner.finish(number) if runner.launch() else None
