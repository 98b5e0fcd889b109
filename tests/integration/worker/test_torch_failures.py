"""Whatever breaks in a model's step is the loss of its own sequences, and the books stay whole."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.torch_engines import VOCAB_SIZE, EngineDriver, TinyModel, engine_driver, tiny_model

from engines.api import DeviceLostError, FinishReason
from engines.torch.scheduling.runner import SequenceRunner

NUM_TOKENS = 12
NEAR_TIE = 1e-4

# What a step does with a model, in its order: choosing, taking blocks, admitting, the forward pass, sampling, output.
POINTS = [
    ("_table.running", 3),
    ("_scheduler._find", 2),
    ("_blocks.pages_short", 2),
    ("_blocks.extend", 1),
    ("_blocks.extend", 6),
    ("_blocks.adopt", 2),
    ("_edits.begin", 1),
    ("_edits.begin", 3),
    ("_forward", 1),
    ("_forward", 4),
    ("_first_tokens.add_prompt_logprobs", 1),
    ("_to_logits", 2),
    ("_edits.changes", 2),
    ("_sampler.sample", 3),
    ("_resumption.store", 2),
    ("_first_tokens.take", 1),
    ("_table.append", 2),
    ("_edits.end", 1),
    ("_blocks.release", 1),
    ("_table.remove", 1),
    ("_blocks.free_behind_windows", 13),  # after the step in which the first ones end
]


def prompt_of(length: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(3, VOCAB_SIZE), k=length)


def runner_of(driver: EngineDriver, replica_id: str) -> Any:
    driver.engine.check_integrity()  # as any call of the step thread, it lets in what was loaded
    runner = driver.engine._places[replica_id].replica.runner
    assert isinstance(runner, SequenceRunner)
    return runner


def break_once(owner: Any, path: str, at_call: int, error: Exception) -> Callable[[], bool]:
    """Lets the method at ``path`` raise at one of its calls; returns whether it has."""
    *parts, name = path.split(".")
    for part in parts:
        owner = getattr(owner, part)
    method, num_calls = getattr(owner, name), 0

    def breaking(*args: Any, **kwargs: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        if num_calls == at_call:
            raise error
        return method(*args, **kwargs)

    setattr(owner, name, breaking)
    return lambda: num_calls >= at_call


def assert_greedy(model: TinyModel, prompt: list[int], found: list[int]) -> None:
    assert len(found) == NUM_TOKENS
    assert max(model.behind_best(prompt, found)) < NEAR_TIE


@pytest.mark.parametrize(("path", "at_call"), POINTS)
def test_what_breaks_in_a_step_ends_sequences_of_its_model_alone(path: str, at_call: int) -> None:
    broken, healthy = tiny_model("mistral"), tiny_model("llama", seed=1)
    prompts = {i: prompt_of(20 + 3 * i, seed=i) for i in range(8)}
    with engine_driver(max_running_sequences=3, max_tokens_per_step=24) as driver:
        driver.load(broken, "broken")
        driver.load(healthy, "healthy")
        has_broken = break_once(runner_of(driver, "broken"), path, at_call, RuntimeError("it breaks"))
        for i, prompt in prompts.items():
            wanted = {"logit_bias": ((9, 3.0),), "prompt_logprobs": 0} if i == 1 else {}
            penalties = {"presence_penalty": 0.5} if i == 2 else {}
            driver.submit(
                i, prompt, "broken" if i < 5 else "healthy", max_tokens=NUM_TOKENS, **wanted, **penalties
            )
        driver.run()  # and the books are whole at its end
        assert has_broken()
        assert driver.finished.keys() == prompts.keys()
        failed = [i for i in prompts if driver.finished[i].reason is FinishReason.ERROR]
        assert failed
        assert max(failed) < 5
        assert {driver.finished[i].error_code for i in failed} == {"internal_error"}
        for i in (5, 6, 7):
            assert_greedy(healthy, prompts[i], driver.tokens[i])
        for i in (0, 3, 4):
            if i not in failed:
                assert_greedy(broken, prompts[i], driver.tokens[i])
        assert driver.engine.stats().kv_swapped_bytes == 0
        driver.submit(8, prompts[0], "broken", max_tokens=NUM_TOKENS)
        driver.run()
        assert_greedy(broken, prompts[0], driver.tokens[8])


@pytest.mark.parametrize("path", ["_resumption.keep", "_edits.end", "_blocks.release"])
def test_a_preemption_that_breaks_ends_sequences_of_its_model_alone(path: str) -> None:
    model, healthy = tiny_model("llama"), tiny_model("qwen3", seed=1)
    prompts = {i: prompt_of(60, seed=i) for i in range(6)}
    with engine_driver(lease_pages=8) as driver:
        driver.load(model, "broken")
        driver.load(healthy, "healthy")
        runner = runner_of(driver, "broken")
        runner._resumption._swap.is_worth_copying_out = lambda blocks: True
        has_broken = break_once(runner, path, 2, RuntimeError("it breaks"))
        for i, prompt in prompts.items():
            driver.submit(
                i, prompt, "broken" if i < 4 else "healthy", max_tokens=NUM_TOKENS, cache_scope=None
            )
        while not all(driver.tokens[i] for i in prompts):
            driver.step()
        driver.shrink_to(0)
        assert has_broken()
        driver.engine.check_integrity()
        driver.lease_pages(8)
        driver.run()
        ends = [driver.finished[i].error_code for i in prompts]
        assert ends[4:] == ["", ""]
        assert "internal_error" in ends
        assert driver.engine.stats().kv_swapped_bytes == 0


def test_a_sequence_that_cannot_be_queued_ends_alone() -> None:
    model = tiny_model("llama")
    with engine_driver() as driver:
        driver.load(model)
        break_once(runner_of(driver, "m"), "_waiting.push", 2, RuntimeError("it breaks"))
        prompts = {i: prompt_of(20, seed=i) for i in range(3)}
        for i, prompt in prompts.items():
            driver.submit(i, prompt, max_tokens=NUM_TOKENS)
        driver.run()
        assert [driver.finished[i].error_code for i in prompts] == ["", "internal_error", ""]
        assert_greedy(model, prompts[2], driver.tokens[2])


def test_a_move_of_blocks_that_breaks_leaves_the_moved_model_whole() -> None:
    spread, short = tiny_model("llama"), tiny_model("qwen3")
    prompts = {i: prompt_of(200, seed=i) for i in range(6)}
    with engine_driver(lease_pages=4) as driver:
        driver.load(spread, "spread")
        driver.load(short, "short")
        for i in range(4):
            driver.submit(i, prompts[i], "spread", cache_scope=None, max_tokens=40)
        while not driver.tokens[3]:
            driver.step()
        driver.engine.cancel([0, 2])
        driver.step()
        store = driver.engine._cache
        move = store._move["spread"]
        moves: list[Any] = []

        def breaking(*args: Any) -> None:
            moves.append(args)
            if len(moves) == 1:
                raise RuntimeError("it breaks")
            move(*args)

        store._move["spread"] = breaking
        for i in (4, 5):
            driver.submit(i, prompts[i], "short", cache_scope=None, max_tokens=20)
        driver.run()
        assert moves
        assert [driver.finished[i].error_code for i in (1, 3)] == ["", ""]
        assert max(spread.behind_best(prompts[1], driver.tokens[1])) < NEAR_TIE


@pytest.mark.parametrize("path", ["_table.running", "_forward", "_sampler.sample", "_blocks.release"])
def test_a_lost_device_is_nobodys_own_fault(path: str) -> None:
    lost = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    with engine_driver() as driver:
        driver.load(tiny_model("llama"))
        break_once(runner_of(driver, "m"), path, 1, lost)
        driver.submit(1, [5, 6, 7], max_tokens=2)
        with pytest.raises(DeviceLostError, match="illegal memory access"):
            driver.run()
        assert 1 not in driver.finished
        driver.engine.cancel([1])
        driver.step()
