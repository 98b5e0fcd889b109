"""Whoever waits longest ends, however many come after it and however often memory runs out: the real runner, pool
and cache over a model that computes nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.kv_moves import move_nothing

from engines.api import SamplingParams, SequenceRequest
from engines.config import TorchEngineConfig
from engines.torch.kv.swap import KVSwap, SwapSpace
from engines.torch.model.kv_view import KVCacheView
from engines.torch.scheduling.counters import RunnerCounters
from engines.torch.scheduling.requests import SequenceLimits
from engines.torch.scheduling.runner import SequenceRunner
from memory_manager.arena.host_arena import HostArena
from memory_manager.kv.block_store import BlockStore
from memory_manager.kv.pool import KVPool
from memory_manager.kv_spec import PAGE_BYTES, KVGroup

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
    yield SequenceRunner(
        "m",
        lambda batch: torch.zeros(len(batch.logits_rows), 1),
        lambda states: torch.zeros(len(states), 8),
        limits=SequenceLimits(8, MAX_LEN, (GROUP,), NUM_PAGES * PAGE_BYTES),
        eos_ids=(),
        cache=cache,
        swap=KVSwap(view, SwapSpace(0, CPU)),
        artifact=b"",
        device=CPU,
        config=TorchEngineConfig(max_running_sequences=6, max_tokens_per_step=24),
        counters=RunnerCounters(),
        clock=time.perf_counter,
    )
    arena.close()


lengths = st.tuples(st.integers(1, 50), st.integers(2, 60))


@settings(max_examples=40)
@given(first=lengths, others=st.lists(lengths, min_size=1, max_size=6), shares=st.booleans())
def test_the_earliest_always_ends(
    first: tuple[int, int], others: list[tuple[int, int]], shares: bool
) -> None:
    with runner_without_a_model() as runner:
        num_submitted = 0

        def submit(num_prompt: int, max_tokens: int) -> None:
            nonlocal num_submitted
            num_submitted += 1
            prompt = [(num_submitted * 3 + i) % 8 for i in range(num_prompt)]
            sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens)
            scope = b"" if shares else None
            runner.submit(
                SequenceRequest(num_submitted, "m", prompt, sampling, cache_scope=scope), num_submitted
            )

        ended: set[int] = set()
        submit(*first)
        for step in range(400):
            while runner.num_waiting < 3:
                submit(*others[num_submitted % len(others)])
            output = runner.step(step)
            runner.check_integrity()
            ended |= {end.sequence_id for end in output.finished} if output is not None else set()
            earliest = next(number for number in range(1, num_submitted + 1) if number not in ended)
            # Each may take as long as its tokens, once it is the earliest; all before it had their time.
            assert step <= 1 + earliest * (MAX_LEN + 4)
            if earliest > 4:
                return
