"""Sequences whose replica sleeps under them: they keep their KV while nobody needs it, and go on as if nothing had
happened."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.torch_engines import EngineDriver, engine_driver, tiny_model

from engines.api import FinishReason
from engines.torch.kv.swap import CopyRates, SwapSpace
from memory_manager.kv_spec import PAGE_BYTES
from memory_manager.stats import ReplicaStats

pytestmark = pytest.mark.integration

WEIGHTS_LEASE_BYTES = 64 * PAGE_BYTES
SCRIPTED = {
    "greedy": {},
    "drawn": {"temperature": 1.0, "seed": 3},
    "penalized": {"temperature": 0.8, "seed": 4, "presence_penalty": 0.7, "repetition_penalty": 1.3},
    "edited": {"logit_bias": ((9, 3.0),), "bad_words_ids": ((8,), (9, 9))},
    "scored": {"logprobs": 2, "prompt_logprobs": 1},
}


def prompt_of(num_tokens: int, seed: int = 0) -> list[int]:
    return [3 + (7 * i + 31 * seed) % 290 for i in range(num_tokens)]


def submit_all(driver: EngineDriver, replica_id: str = "m") -> None:
    """One sequence of each kind, and the three choices of one request."""
    for number, sampling in enumerate(SCRIPTED.values()):
        driver.submit(number, prompt_of(40 + 30 * number, seed=number), replica_id, **sampling)
    for choice in range(3):
        driver.submit(10 + choice, prompt_of(50, 7), replica_id, temperature=1.0, seed=1, choice=choice)


def replica(driver: EngineDriver, replica_id: str = "m") -> ReplicaStats:
    return next(each for each in driver.engine.stats().replicas if each.replica_id == replica_id)


def wake(driver: EngineDriver, replica_id: str = "m") -> None:
    driver.engine.wake(replica_id, WEIGHTS_LEASE_BYTES)


def undisturbed(kind: str) -> EngineDriver:
    with engine_driver() as driver:
        driver.load(tiny_model(kind))
        submit_all(driver)
        driver.run()
        return driver


def assert_same(driver: EngineDriver, expected: EngineDriver) -> None:
    assert driver.tokens == expected.tokens
    for found, wanted in (
        (driver.logprobs, expected.logprobs),
        (driver.prompt_logprobs, expected.prompt_logprobs),
    ):
        assert found.keys() == wanted.keys()
        for number, tops in wanted.items():
            assert [top.token_ids for top in found[number]] == [top.token_ids for top in tops]
            assert [top.logprob for top in found[number]] == pytest.approx(
                [top.logprob for top in tops], abs=1e-4
            )
    assert {i: end.reason for i, end in driver.finished.items()} == dict.fromkeys(
        expected.tokens, FinishReason.LENGTH
    )


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("num_steps", [1, 2, 5, 12], ids=["prefill", "first tokens", "both", "decode"])
def test_a_parked_sequence_goes_on_with_its_own_text(kind: str, num_steps: int) -> None:
    expected = undisturbed(kind)
    with engine_driver() as driver:
        weights_bytes = driver.load(tiny_model(kind))
        submit_all(driver)
        num_rounds = 0
        while len(driver.finished) < len(expected.tokens):
            for _ in range(num_steps):
                driver.step()
            before = replica(driver)
            assert driver.engine.sleep("m") == weights_bytes
            assert driver.engine.sleep("m") == 0
            asleep = replica(driver)
            assert (asleep.residency, asleep.weights_bytes) == ("warm", 0)
            assert (asleep.kv_bytes, asleep.kv_live_bytes) == (before.kv_bytes, before.kv_live_bytes)
            assert (asleep.num_running, asleep.num_queued) == (0, before.num_running + before.num_queued)
            assert not driver.engine.has_work()
            assert driver.step() == 0
            driver.engine.check_integrity()
            wake(driver)
            assert driver.engine.has_work()
            num_rounds += 1
        assert num_rounds > 1
        assert driver.preemptions() == 0
        assert_same(driver, expected)


def test_what_comes_while_a_replica_sleeps_waits_and_prefixes_stay_stored() -> None:
    with engine_driver() as driver:
        driver.load(tiny_model("llama"))
        driver.submit(0, prompt_of(100), max_tokens=2)
        driver.run()
        cached_bytes = replica(driver).kv_cached_bytes
        driver.engine.sleep("m")
        assert cached_bytes > 0
        assert replica(driver).kv_cached_bytes == cached_bytes
        driver.submit(1, prompt_of(100), max_tokens=2)
        assert not driver.engine.has_work()
        wake(driver)
        driver.run()
        assert driver.cached_tokens[1] > 0
        assert driver.tokens[1] == driver.tokens[0]


def test_a_parked_sequence_that_is_cancelled_lets_go_of_everything() -> None:
    with engine_driver() as driver:
        driver.load(tiny_model("llama"))
        for number in range(20):  # four wait for a slot
            driver.submit(number, prompt_of(60, number), cache_scope=None, presence_penalty=0.5)
        for _ in range(6):
            driver.step()
        driver.engine.sleep("m")
        assert replica(driver).kv_live_bytes > 0
        driver.engine.cancel(range(20))
        driver.step()
        assert {end.reason for end in driver.finished.values()} == {FinishReason.CANCELLED}
        assert len(driver.finished) == 20
        asleep = replica(driver)
        assert (asleep.num_queued, asleep.kv_bytes) == (0, 0)
        driver.engine.check_integrity()


@pytest.mark.parametrize("swaps", [True, False], ids=["swapped", "computed again"])
def test_parked_sequences_give_way_to_another_model(monkeypatch: pytest.MonkeyPatch, swaps: bool) -> None:
    rates = CopyRates(1.0, 1e12, 1e12) if swaps else CopyRates(None, 1.0, 1.0)
    monkeypatch.setattr(SwapSpace, "rates", lambda self, _: rates)
    expected = undisturbed("llama")
    with engine_driver(lease_pages=4) as driver:
        driver.load(tiny_model("llama"))
        submit_all(driver)
        for _ in range(14):
            driver.step()
        driver.engine.sleep("m")
        held_bytes = replica(driver).kv_live_bytes
        assert held_bytes > PAGE_BYTES
        driver.load(tiny_model("llama", seed=1), "other")
        for number in range(20, 25):
            driver.submit(number, prompt_of(200, number), "other", max_tokens=40, cache_scope=None)
        driver.run()
        assert replica(driver, "other").preemptions_total == 0, "who is parked goes first"
        asleep = replica(driver)
        assert asleep.kv_live_bytes < held_bytes
        assert asleep.preemptions_total > 0
        assert (driver.engine.stats().kv_swapped_bytes > 0) == swaps
        wake(driver)
        driver.run()
        for number in range(20, 25):
            assert len(driver.tokens.pop(number)) == 40
            assert driver.finished.pop(number).reason is FinishReason.LENGTH
        assert_same(driver, expected)
        assert driver.engine.stats().kv_swapped_bytes == 0


def test_a_smaller_lease_takes_stored_blocks_then_parked_ones_then_those_that_run() -> None:
    expected = undisturbed("llama")
    with engine_driver() as driver:
        driver.load(tiny_model("llama"))
        driver.load(tiny_model("mistral"), "other")
        driver.submit(30, prompt_of(200, 9), max_tokens=1)
        driver.run()
        submit_all(driver)
        driver.submit(31, prompt_of(30, 8), "other", max_tokens=150)
        for _ in range(28):
            driver.step()
        driver.engine.sleep("m")
        lease, kept = 16, replica(driver)
        assert kept.kv_cached_bytes > 0

        def shrink_until(is_reached: Callable[[], bool]) -> None:
            nonlocal lease
            while not is_reached():
                lease -= 1
                driver.shrink_to(lease)
                driver.engine.check_integrity()

        shrink_until(lambda: replica(driver).preemptions_total > 0)
        assert replica(driver, "other").preemptions_total == 0
        shrink_until(lambda: replica(driver).kv_live_bytes == 0)
        assert replica(driver, "other").preemptions_total == 0
        shrink_until(lambda: replica(driver, "other").preemptions_total > 0)
        driver.lease_pages(16)
        wake(driver)
        driver.run()
        assert len(driver.tokens.pop(31)) == 150
        for number in (30, 31):
            driver.tokens.pop(number, None)
            driver.finished.pop(number)
        assert_same(driver, expected)


def test_what_a_sleeper_kept_beyond_its_share_goes_back_when_it_wakes() -> None:
    """Asleep, a model may fill nearly all pages; awake, it must leave alone what is guaranteed to another."""
    with engine_driver(lease_pages=6) as driver:
        driver.load(tiny_model("llama"), "large")
        for number in range(12):
            driver.submit(number, prompt_of(150, number), "large", max_tokens=60, cache_scope=None)
        for _ in range(58):
            driver.step()
        num_before = driver.preemptions()
        driver.engine.sleep("large")
        driver.load(tiny_model("llama"), "small", kv_guarantee_bytes=PAGE_BYTES)
        assert replica(driver, "large").preemptions_total == num_before
        wake(driver, "large")
        assert replica(driver, "large").preemptions_total > num_before
        driver.submit(20, prompt_of(20), "small", max_tokens=100, cache_scope=None)
        driver.run()
        assert replica(driver, "small").preemptions_total == 0
        assert {end.reason for end in driver.finished.values()} == {FinishReason.LENGTH}


def test_books_that_fail_while_a_model_sleeps_begin_anew_asleep(monkeypatch: pytest.MonkeyPatch) -> None:
    with engine_driver(lease_pages=5) as driver:
        driver.load(tiny_model("llama"))
        submit_all(driver)
        for _ in range(14):
            driver.step()
        driver.engine.sleep("m")
        runner = driver.engine._places["m"].replica.runner
        assert runner is not None

        def fail(slot: int) -> None:
            raise RuntimeError("the books are torn")

        monkeypatch.setattr(runner, "preempt", fail)
        driver.shrink_to(0)
        driver.engine.check_integrity()
        driver.step()
        assert {end.error_code for end in driver.finished.values()} == {"internal_error"}
        assert replica(driver).residency == "warm"
        driver.lease_pages(5)
        driver.submit(20, prompt_of(30))
        assert not driver.engine.has_work()
        wake(driver)
        driver.run()
        assert driver.finished[20].reason is FinishReason.LENGTH
