"""The torch engine's prefix cache and swap: what is found, by whom, and what is given up first."""

from __future__ import annotations

from typing import Any

import pytest
from support.torch_engines import EngineDriver, engine_driver, tiny_model

from engines.torch.kv.swap import CopyRates, SwapSpace
from memory_manager.kv.block_store import BlockStore
from memory_manager.kv_spec import PAGE_BYTES

BLOCK = 16


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return [3 + (7 * seed + 11 * i) % 290 for i in range(length)]


def replica(driver: EngineDriver, replica_id: str = "m"):  # type: ignore[no-untyped-def]
    return next(each for each in driver.engine.stats().replicas if each.replica_id == replica_id)


def test_whole_blocks_are_found_and_the_last_token_is_computed() -> None:
    with engine_driver() as driver:
        driver.load(tiny_model("llama"))
        for sequence_id, length in enumerate((64, 64, 65, 40)):
            driver.submit(sequence_id, prompt_of(length), max_tokens=2)
            driver.run()
        assert driver.cached_tokens == {0: 0, 1: 48, 2: 64, 3: 32}
        figures = replica(driver)
        assert (figures.prefix_query_tokens_total, figures.prefix_hit_tokens_total) == (233, 144)
        assert figures.prompt_tokens_total == 233
        assert (figures.kv_live_bytes, figures.kv_cached_bytes) == (0, 4 * BLOCK * 3 * 2048)


def test_the_prefix_of_a_running_sequence_is_found() -> None:
    with engine_driver(max_tokens_per_step=64) as driver:
        driver.load(tiny_model("llama"))
        driver.submit(0, prompt_of(200))
        driver.step()  # 64 tokens of its prefill
        driver.submit(1, prompt_of(200))
        driver.run()
        assert driver.cached_tokens[0] == 0
        assert driver.cached_tokens[1] >= 64
        assert driver.tokens[0] == driver.tokens[1]


def test_output_is_found_when_it_comes_back_as_a_prompt() -> None:
    with engine_driver() as driver:
        driver.load(tiny_model("qwen2"))
        driver.submit(0, prompt_of(40), max_tokens=40)
        driver.run()
        turn = prompt_of(40) + driver.tokens[0] + prompt_of(5, seed=3)
        driver.submit(1, turn, max_tokens=8)
        driver.submit(2, turn, max_tokens=8, cache_scope=None)
        driver.run()
        assert driver.cached_tokens[1] == 64  # 79 of the first 80 tokens were computed: four whole blocks
        assert driver.tokens[1] == driver.tokens[2]


@pytest.mark.parametrize("other", [b"tenant-b", None])
def test_scopes_neither_read_nor_time_each_others_blocks(other: bytes | None) -> None:
    with engine_driver(max_tokens_per_step=32) as driver:
        driver.load(tiny_model("llama"))

        def num_steps(sequence_id: int, scope: bytes | None) -> int:
            before = driver.engine.stats().steps_total
            driver.submit(sequence_id, prompt_of(128), max_tokens=1, cache_scope=scope)
            driver.run()
            return driver.engine.stats().steps_total - before

        assert num_steps(0, b"tenant-a") == 4
        assert num_steps(1, other) == 4  # as if nobody had been there
        assert num_steps(2, b"tenant-a") == 1
        assert driver.cached_tokens.get(1, 0) == 0


def test_without_a_scope_nothing_is_kept() -> None:
    with engine_driver() as driver:
        driver.load(tiny_model("llama"))
        driver.submit(0, prompt_of(64), cache_scope=None)
        driver.run()
        assert driver.cached_tokens == {}
        figures = replica(driver)
        assert (figures.kv_bytes, figures.kv_cached_bytes, figures.prefix_query_tokens_total) == (0, 0, 0)


def test_prompts_that_are_scored_are_computed_and_then_found() -> None:
    with engine_driver() as driver:
        driver.load(tiny_model("llama"))
        for sequence_id in (0, 1):
            driver.submit(sequence_id, prompt_of(64), prompt_logprobs=0, max_tokens=2)
            driver.run()
        assert len(driver.prompt_logprobs[1]) == 63
        assert [top.logprob for top in driver.prompt_logprobs[0]] == [
            top.logprob for top in driver.prompt_logprobs[1]
        ]
        driver.submit(2, prompt_of(64), max_tokens=2)
        driver.run()
        assert driver.cached_tokens == {2: 48}


def test_idle_blocks_go_before_anything_is_preempted_the_longest_idle_first() -> None:
    with engine_driver(lease_pages=4) as driver:
        driver.load(tiny_model("llama"), max_model_len=240)  # three pages hold 21 blocks each
        for sequence_id in (0, 1, 2):  # 15 blocks each
            driver.submit(sequence_id, prompt_of(239, seed=sequence_id), max_tokens=1)
            driver.run()
        driver.submit(3, prompt_of(239, seed=3), max_tokens=1)
        driver.submit(4, prompt_of(239, seed=4), max_tokens=1)
        driver.submit(5, prompt_of(239, seed=5), max_tokens=1)
        driver.run()
        assert driver.preemptions() == 0
        driver.submit(6, prompt_of(239, seed=5), max_tokens=1)
        driver.run()
        assert driver.cached_tokens[6] == 224
        driver.submit(7, prompt_of(239, seed=0), max_tokens=1)
        driver.run()
        assert driver.cached_tokens[7] == 0


def test_what_waits_for_room_is_looked_up_again_only_after_something_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lookups = 0
    find = BlockStore.find

    def counted(*arguments: Any) -> Any:
        nonlocal lookups
        lookups += 1
        return find(*arguments)

    monkeypatch.setattr(BlockStore, "find", counted)
    with engine_driver(lease_pages=4) as driver:
        driver.load(tiny_model("llama"), max_model_len=240)
        for sequence_id in range(8):  # five of them fill what there is
            driver.submit(sequence_id, prompt_of(200, seed=sequence_id), max_tokens=40)
        while len(driver.tokens[4]) < 2:
            driver.step()
        assert replica(driver).num_queued > 0
        before, first_step = lookups, driver.engine.stats().steps_total
        while not driver.finished:
            driver.step()
        num_steps = driver.engine.stats().steps_total - first_step
        assert num_steps > 20
        assert lookups - before < num_steps / 2  # a block is stored every 16 tokens of each of five
        driver.run()
        assert len(driver.finished) == 8


def test_one_of_several_that_begin_alike_computes_for_all_of_them() -> None:
    with engine_driver(max_tokens_per_step=256) as driver:
        driver.load(tiny_model("llama"))
        for choice in range(4):
            driver.submit(choice, prompt_of(60))
        driver.submit(4, prompt_of(60), cache_scope=b"another tenant")
        driver.step()
        assert sorted(driver.tokens) == [0, 4], "who shares nothing waits for nobody"
        driver.step()
        assert driver.cached_tokens == {0: 0, 1: 48, 2: 48, 3: 48, 4: 0}
        driver.run()
        assert (
            driver.tokens[0] == driver.tokens[1] == driver.tokens[2] == driver.tokens[3] == driver.tokens[4]
        )


def test_sequences_end_where_the_device_has_less_memory_than_the_lease(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with engine_driver() as driver:
        driver.load(tiny_model("llama"), max_model_len=240)
        arena = driver.engine._arena
        num_free = (arena.capacity_bytes - arena.committed_bytes) // PAGE_BYTES
        others = arena.reserve(num_free * PAGE_BYTES)
        arena.commit(others, 0, num_free - 1)
        for sequence_id in range(4):  # one page holds one of them, and idle blocks of another
            driver.submit(sequence_id, prompt_of(150, seed=sequence_id), max_tokens=60)
        driver.run()
        assert len(driver.finished) == 4
        assert sum("cannot grow" in record.message for record in caplog.records) == 1
        arena.free_range(others)


def test_another_models_idle_blocks_are_given_up_down_to_its_guarantee() -> None:
    with engine_driver(lease_pages=6) as driver:
        driver.load(tiny_model("llama"), "a", max_model_len=64, kv_guarantee_bytes=PAGE_BYTES)
        driver.load(tiny_model("llama", seed=1), "b", max_model_len=256)
        for sequence_id in range(20):
            driver.submit(sequence_id, prompt_of(60, seed=sequence_id), "a", max_tokens=1)
        driver.run()
        assert replica(driver, "a").kv_bytes > PAGE_BYTES
        for sequence_id in range(20, 40):
            driver.submit(sequence_id, prompt_of(200, seed=sequence_id), "b", max_tokens=30)
        driver.run()
        a = replica(driver, "a")
        assert a.kv_bytes == PAGE_BYTES
        assert 0 < a.kv_cached_bytes <= PAGE_BYTES


def test_a_model_at_its_cap_gives_up_its_own_idle_blocks_and_not_those_of_others() -> None:
    with engine_driver(lease_pages=12) as driver:
        driver.load(tiny_model("llama"), "old", max_model_len=64)
        driver.load(tiny_model("llama", seed=1), "capped", max_model_len=240, kv_cap_bytes=2 * PAGE_BYTES)
        for sequence_id in range(20):
            driver.submit(sequence_id, prompt_of(60, seed=sequence_id), "old", max_tokens=1)
        driver.run()
        before = replica(driver, "old")
        assert before.kv_bytes > PAGE_BYTES
        for sequence_id in range(20, 30):  # three of them fill its pages
            driver.submit(sequence_id, prompt_of(230, seed=sequence_id), "capped", max_tokens=1)
            driver.run()
        assert replica(driver, "capped").kv_bytes <= 2 * PAGE_BYTES
        assert replica(driver, "old").kv_cached_bytes == before.kv_cached_bytes


def test_a_smaller_lease_takes_idle_blocks_and_no_sequence() -> None:
    with engine_driver(lease_pages=8) as driver:
        driver.load(tiny_model("llama"))
        for sequence_id in range(8):
            driver.submit(sequence_id, prompt_of(200, seed=sequence_id), max_tokens=1)
        driver.run()
        driver.submit(8, prompt_of(40, seed=8), max_tokens=20)
        driver.step()
        held = replica(driver).kv_bytes // PAGE_BYTES
        assert held > 3
        driver.shrink_to(3)
        assert driver.engine.stats().kv_bytes <= 4 * PAGE_BYTES
        driver.run()
        assert driver.preemptions() == 0


def test_unload_drops_what_is_stored() -> None:
    with engine_driver() as driver:
        driver.load(tiny_model("qwen2"))
        driver.submit(0, prompt_of(100), max_tokens=2)
        driver.run()
        assert replica(driver).kv_cached_bytes > 0
        driver.engine.unload("m")
        assert driver.engine.stats().fragmentation.free_bytes == driver.engine.stats().kv_bytes - PAGE_BYTES
        driver.load(tiny_model("qwen2"))
        driver.submit(1, prompt_of(100), max_tokens=2)
        driver.run()
        assert driver.cached_tokens[1] == 0
        assert driver.tokens[1] == driver.tokens[0]


def preempted(driver: EngineDriver, *, scope: bytes | None = b"") -> list[int]:
    """What a sequence gives that loses all its blocks halfway."""
    driver.submit(0, prompt_of(150), max_tokens=20, cache_scope=scope)
    for _ in range(8):
        driver.step()
    driver.shrink_to(0)
    assert driver.engine.stats().kv_bytes == PAGE_BYTES
    driver.step()
    driver.lease_pages(16)
    # It goes first and writes over the memory that was lost.
    driver.submit(1, prompt_of(200, seed=5), priority=1, max_tokens=1, cache_scope=None)
    driver.run()
    return driver.tokens[0]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral"])
@pytest.mark.parametrize("scope", [b"", None])
def test_swapping_and_computing_again_give_the_same(
    monkeypatch: pytest.MonkeyPatch, kind: str, scope: bytes | None
) -> None:
    with engine_driver(kv_swap_bytes=0) as driver:
        driver.load(tiny_model(kind))
        expected = preempted(driver, scope=scope)
        figures = replica(driver)
        assert (figures.preemptions_total, figures.preemptions_by_swap_total) == (1, 0)
        num_steps = driver.engine.stats().steps_total
    monkeypatch.setattr(SwapSpace, "rates", lambda self, _: CopyRates(1.0, 1e12, 1e12))
    with engine_driver() as driver:
        driver.load(tiny_model(kind))
        assert preempted(driver, scope=scope) == expected
        figures = replica(driver)
        assert (figures.preemptions_total, figures.preemptions_by_swap_total) == (1, 1)
        assert driver.engine.stats().steps_total < num_steps  # nothing was prefilled again


def test_swapped_kv_is_given_back_when_its_sequence_ends_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SwapSpace, "rates", lambda self, _: CopyRates(1.0, 1e12, 1e12))
    with engine_driver() as driver:
        driver.load(tiny_model("llama"))
        for sequence_id in (0, 1):
            driver.submit(sequence_id, prompt_of(60, seed=sequence_id))
        for _ in range(4):
            driver.step()
        driver.shrink_to(0)
        assert driver.engine.stats().kv_swapped_bytes > 0
        driver.engine.cancel([0])
        driver.engine.check_integrity()
        driver.engine.unload("m")
        driver.engine.check_integrity()
        assert driver.engine.stats().kv_swapped_bytes == 0


def test_what_does_not_fit_into_host_memory_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SwapSpace, "rates", lambda self, _: CopyRates(1.0, 1e12, 1e12))
    with engine_driver(kv_swap_bytes=100_000) as driver:
        driver.load(tiny_model("llama"))
        assert len(preempted(driver)) == 20
        assert replica(driver).preemptions_by_swap_total == 0
