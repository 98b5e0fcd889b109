"""The torch engine against transformers, on tiny random models of every architecture."""

from __future__ import annotations

import random

import pytest
from support.torch_engines import KINDS, VOCAB_SIZE, EngineDriver, TinyModel, engine_driver, tiny_model

from engines.api import REPLICA_ASLEEP, FinishReason
from memory_manager.ports import LeaseStatus

NEAR_TIE = 1e-4


def prompt_of(length: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(3, VOCAB_SIZE), k=length)


def assert_greedy(
    model: TinyModel, driver: EngineDriver, prompts: dict[int, list[int]], num_tokens: int
) -> None:
    """Every sequence got transformers' tokens, save after a near tie."""
    num_near_ties = 0
    for sequence_id, prompt in prompts.items():
        expected, leads = model.greedy(prompt, num_tokens)
        found = driver.tokens[sequence_id]
        assert len(found) == num_tokens
        differs = next((i for i in range(num_tokens) if found[i] != expected[i]), None)
        if differs is not None:
            assert leads[differs] < NEAR_TIE, (sequence_id, differs, leads[differs])
            num_near_ties += 1
    assert num_near_ties <= len(prompts) // 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 5, 16, 70, 150])
def test_one_sequence_alone(kind: str, length: int) -> None:
    model = tiny_model(kind)
    with engine_driver() as driver:
        driver.load(model)
        prompt = prompt_of(length, seed=length)
        driver.submit(1, prompt, max_tokens=40)
        driver.run()
        assert driver.finished[1].reason is FinishReason.LENGTH
        assert_greedy(model, driver, {1: prompt}, 40)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lease_pages", [16, 2])
def test_a_mixed_batch_with_staggered_arrivals_with_and_without_preemption(
    kind: str, lease_pages: int
) -> None:
    model = tiny_model(kind)
    with engine_driver(lease_pages=lease_pages, max_tokens_per_step=48) as driver:
        driver.load(model, max_model_len=160)
        prompts = {i: prompt_of(3 + 13 * (i % 7), seed=i) for i in range(14)}
        for sequence_id, prompt in prompts.items():
            driver.submit(sequence_id, prompt, max_tokens=60)
            driver.step()
            driver.step()
        driver.run()
        if lease_pages == 2 and kind in ("llama", "qwen3"):
            assert driver.preemptions() > 0
        if lease_pages == 16:
            assert driver.preemptions() == 0
        assert_greedy(model, driver, prompts, 60)


@pytest.mark.parametrize("kind", ["qwen2", "mistral"])
def test_blocks_behind_the_window_are_freed(kind: str) -> None:
    model = tiny_model(kind)
    with engine_driver() as driver:
        driver.load(model)
        driver.submit(1, prompt_of(100, seed=0), max_tokens=100)
        live = []
        while driver.engine.has_work():
            driver.step()
            live.append(driver.engine.stats().replicas[0].kv_live_bytes)
        in_window_bytes = 3 * 16 * 2048  # blocks x tokens x bytes of a layer: 24 tokens lie in three blocks
        full_layers, window_layers = (1, 2) if kind == "qwen2" else (0, 3)
        full_bytes = full_layers * 13 * 16 * 2048
        assert max(live[5:]) <= full_bytes + window_layers * in_window_bytes


@pytest.mark.parametrize("kind", ["llama", "mistral"])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_resubmitted_sequence_goes_on_as_it_would_have(kind: str, temperature: float) -> None:
    sampling = {
        "temperature": temperature,
        "seed": 99,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.2,
        "max_tokens": 30,
    }
    prompt = prompt_of(20, seed=5)
    with engine_driver() as driver:
        driver.load(tiny_model(kind))
        driver.submit(1, prompt, **sampling)
        driver.run()
        whole = driver.tokens[1]
        for already in (1, 13, 29):
            driver.submit(100 + already, prompt, output_ids=whole[:already], **sampling)
        driver.submit(3, prompt_of(9, seed=1), temperature=1.0)
        driver.run()
        for already in (1, 13, 29):
            assert driver.tokens[100 + already] == whole[already:]


def test_sampled_tokens_do_not_change_by_preemption_and_choices_differ() -> None:
    requests = {i: (prompt_of(30, seed=i // 3), {"seed": 7, "choice": i % 3}) for i in range(9)}
    results = []
    for lease_pages in (16, 1):
        with engine_driver(lease_pages=lease_pages) as driver:
            driver.load(tiny_model("llama"), max_model_len=128)
            for sequence_id, (prompt, noise) in requests.items():
                driver.submit(sequence_id, prompt, temperature=1.0, max_tokens=50, **noise)
            driver.run()
            results.append(dict(driver.tokens))
            assert (driver.preemptions() > 0) == (lease_pages == 1)
    assert results[0] == results[1]
    assert len({tuple(tokens) for tokens in results[0].values()}) == 9


def test_two_models_share_the_pool() -> None:
    first, second = tiny_model("llama"), tiny_model("mistral", seed=1)
    with engine_driver(lease_pages=4) as driver:
        driver.load(first, "a", max_model_len=160)
        driver.load(second, "b", max_model_len=160)
        prompts = {i: prompt_of(10 + 7 * i, seed=i) for i in range(10)}
        for sequence_id, prompt in prompts.items():
            driver.submit(sequence_id, prompt, "ab"[sequence_id % 2], max_tokens=50)
        driver.run()
        assert_greedy(first, driver, {i: p for i, p in prompts.items() if i % 2 == 0}, 50)
        assert_greedy(second, driver, {i: p for i, p in prompts.items() if i % 2 == 1}, 50)


def test_cancel_frees_blocks_at_once_and_is_reported_by_the_next_step() -> None:
    with engine_driver(max_running_sequences=2) as driver:
        driver.load(tiny_model("llama"))
        for sequence_id in (1, 2, 3):
            driver.submit(sequence_id, prompt_of(30, seed=1), max_tokens=100)
        for _ in range(5):
            driver.step()
        before = driver.engine.stats().replicas[0]
        assert (before.running, before.waiting) == (2, 1)
        driver.engine.cancel([2, 3, 77])
        after = driver.engine.stats().replicas[0]
        assert after.kv_live_bytes == before.kv_live_bytes // 2
        driver.step()
        assert {i: end.reason for i, end in driver.finished.items()} == dict.fromkeys(
            (2, 3), FinishReason.CANCELLED
        )
        driver.engine.check_integrity()
        driver.run()
        assert driver.finished[1].reason is FinishReason.LENGTH


def test_sleep_gives_back_all_and_wake_gives_the_same_output() -> None:
    with engine_driver() as driver:
        weights_bytes = driver.load(tiny_model("llama"))
        prompt = prompt_of(25, seed=3)
        driver.submit(1, prompt)
        driver.run()
        driver.submit(2, prompt, max_tokens=100)
        driver.step()
        assert driver.engine.sleep("m") == weights_bytes
        assert driver.engine.sleep("m") == 0
        driver.submit(3, prompt)
        driver.step()
        assert {driver.finished[i].error_code for i in (2, 3)} == {REPLICA_ASLEEP}
        asleep = driver.engine.stats().replicas[0]
        assert (asleep.residency, asleep.weights_bytes, asleep.kv_bytes) == ("warm", 0, 0)
        assert driver.engine.wake("m", weights_bytes) == weights_bytes
        assert driver.engine.wake("m", weights_bytes) == weights_bytes
        driver.submit(4, prompt)
        driver.run()
        assert driver.tokens[4] == driver.tokens[1]


def test_a_smaller_lease_preempts_until_it_is_kept_and_a_larger_one_resumes() -> None:
    model = tiny_model("llama")
    with engine_driver(lease_pages=8) as driver:
        driver.load(model, max_model_len=160)
        prompts = {i: prompt_of(40, seed=i) for i in range(12)}
        for sequence_id, prompt in prompts.items():
            driver.submit(sequence_id, prompt, max_tokens=40)
        for _ in range(20):
            driver.step()
        assert driver.engine.stats().kv_bytes_committed > 2 * 2**21
        assert driver.lease_pages(1) is LeaseStatus.APPLIED
        assert driver.engine.stats().kv_bytes_committed <= 2 * 2**21
        assert driver.engine.stats().replicas[0].running > 0
        for _ in range(10):
            driver.step()
        assert driver.lease_pages(0) is LeaseStatus.APPLIED
        assert driver.engine.stats().kv_bytes_committed == 2**21
        assert driver.step() == 0
        assert driver.engine.has_work()
        assert driver.lease_pages(8) is LeaseStatus.APPLIED
        driver.run()
        assert_greedy(model, driver, prompts, 40)


def test_leases_are_revisioned() -> None:
    with engine_driver() as driver:
        assert driver.engine.set_lease(10 * 2**21, 5) is LeaseStatus.APPLIED
        assert driver.engine.set_lease(10 * 2**21, 5) is LeaseStatus.APPLIED
        assert driver.engine.set_lease(11 * 2**21, 5) is LeaseStatus.CONFLICT
        assert driver.engine.set_lease(11 * 2**21, 4) is LeaseStatus.STALE
        assert driver.engine.stats().kv_lease_bytes == 10 * 2**21
