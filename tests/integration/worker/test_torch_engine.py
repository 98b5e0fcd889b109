"""The torch engine against transformers, on tiny random models of every architecture."""

from __future__ import annotations

import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from support.open_files import open_files
from support.torch_engines import KINDS, VOCAB_SIZE, EngineDriver, TinyModel, engine_driver, tiny_model
from support.until import until

from engines.api import REPLICA_UNLOADED, FinishReason, LoadSpec, run_step
from engines.link.flight_recorder import FlightRecorder
from engines.torch.replica import TorchReplica
from engines.torch.weights.core_turns import CoreTurns
from memory_manager.kv.pool import KVPool
from memory_manager.kv_spec import PAGE_BYTES
from memory_manager.ports import LeaseStatus
from memory_manager.stats import ReplicaStats
from mooring.errors import ArtifactError, InsufficientMemoryError, NotFoundError

NEAR_TIE = 1e-4


def prompt_of(length: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(3, VOCAB_SIZE), k=length)


def assert_greedy(
    model: TinyModel, driver: EngineDriver, prompts: dict[int, list[int]], num_tokens: int
) -> None:
    """Every sequence got transformers' greedy tokens, save at near ties, of which there are few."""
    num_near_ties = 0
    for sequence_id, prompt in prompts.items():
        found = driver.tokens[sequence_id]
        assert len(found) == num_tokens
        behind = model.behind_best(prompt, found)
        assert max(behind) < NEAR_TIE, (sequence_id, behind)
        num_near_ties += sum(gap > 0 for gap in behind)
    assert num_near_ties <= len(prompts) * num_tokens // 100


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_generates_the_same(kind: str) -> None:
    model = tiny_model(kind)
    with engine_driver() as driver:
        driver.load(model)
        prompt = prompt_of(30, seed=2)
        driver.submit(1, prompt, max_tokens=12)
        driver.run()
        assert driver.tokens[1] == model.generate(prompt, 12)


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
        if lease_pages == 2:
            driver.shrink_to(1)
            driver.lease_pages(2)
        driver.run()
        if lease_pages == 2 and kind in ("llama", "qwen3"):
            assert driver.preemptions() > 0
        if lease_pages == 16:
            assert driver.preemptions() == 0
        assert_greedy(model, driver, prompts, 60)


@pytest.mark.parametrize("kind", KINDS)
def test_a_chunk_beside_a_longer_one_reads_nothing_of_its_uncleared_blocks(kind: str) -> None:
    model = tiny_model(kind)
    with engine_driver(max_tokens_per_step=64) as driver:
        driver.load(model)
        prompts = {i: prompt_of(length, seed=i) for i, length in enumerate((40, 100, 30, 120))}
        for sequence_id, prompt in prompts.items():
            driver.submit(sequence_id, prompt, max_tokens=12)
        driver.run()
        assert_greedy(model, driver, prompts, 12)


def test_the_sequences_of_a_step_are_recorded_and_no_others() -> None:
    recorder = FlightRecorder(memoryview(bytearray(FlightRecorder.NUM_BYTES)))
    with engine_driver(recorder=recorder, max_running_sequences=2) as driver:
        driver.load(tiny_model("llama"), "m")
        driver.load(tiny_model("llama"), "n")
        for sequence_id in (1, 2, 3):  # the third finds no slot
            driver.submit(sequence_id, prompt_of(5, seed=sequence_id), max_tokens=2)
        driver.submit(4, prompt_of(5, seed=4), "n", max_tokens=2)
        recorded = []
        while driver.engine.has_work():
            recorder.end_step()
            driver.step()
            recorded.append(recorder.sequence_ids())
    assert sorted(recorded) == [[1, 2], [1, 2], [3], [3], [4], [4]]


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


def test_a_resubmitted_sequence_goes_before_new_ones() -> None:
    with engine_driver(max_running_sequences=1) as driver:
        driver.load(tiny_model("llama"))
        driver.submit(1, prompt_of(10, seed=1), deadline_s=5.0, max_tokens=2)
        driver.submit(2, prompt_of(10, seed=2), output_ids=[7], max_tokens=3)
        driver.run()
        assert list(driver.finished) == [2, 1]


def test_sampled_tokens_do_not_change_by_preemption_and_choices_differ() -> None:
    requests = {i: (prompt_of(30, seed=i // 3), {"seed": 7, "choice": i % 3}) for i in range(9)}
    results = []
    for lease_pages in (16, 1):
        with engine_driver(lease_pages=lease_pages) as driver:
            driver.load(tiny_model("llama"), max_model_len=128)
            for sequence_id, (prompt, noise) in requests.items():
                driver.submit(sequence_id, prompt, temperature=1.0, max_tokens=50, **noise)
            for _ in range(20):
                driver.step()
            if lease_pages == 1:
                driver.shrink_to(0)
                driver.lease_pages(1)
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
            driver.submit(sequence_id, prompt_of(30, seed=sequence_id), max_tokens=100)
        for _ in range(5):
            driver.step()
        before = driver.engine.stats().replicas[0]
        assert (before.num_running, before.num_queued) == (2, 1)
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


def test_a_smaller_lease_preempts_until_it_is_kept_and_a_larger_one_resumes() -> None:
    model = tiny_model("llama")
    with engine_driver(lease_pages=8) as driver:
        driver.load(model, max_model_len=160)
        prompts = {i: prompt_of(40, seed=i) for i in range(12)}
        for sequence_id, prompt in prompts.items():
            driver.submit(sequence_id, prompt, max_tokens=40)
        for _ in range(20):
            driver.step()
        before = driver.engine.stats().kv_bytes
        assert before > 2 * 2**21
        assert driver.lease_pages(1) is LeaseStatus.DEFERRED
        assert driver.engine.stats().kv_bytes == before, "what sequences hold is given up between the steps"
        driver.shrink()
        assert driver.engine.stats().kv_bytes <= 2 * 2**21
        for _ in range(10):
            driver.step()
        assert driver.engine.stats().replicas[0].num_running > 0
        assert driver.engine.stats().kv_bytes <= 2 * 2**21
        driver.shrink_to(0)
        assert driver.step() == 0
        assert driver.engine.has_work()
        assert driver.lease_pages(8) is LeaseStatus.APPLIED
        driver.run()
        assert_greedy(model, driver, prompts, 40)


def test_a_failing_forward_ends_its_own_sequences_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    broken, healthy = tiny_model("llama"), tiny_model("mistral", seed=1)
    with engine_driver() as driver:
        driver.load(broken, "broken")
        driver.load(healthy, "healthy")
        driver.engine.check_integrity()  # as any call of the step thread, it lets in what was loaded
        runner = driver.engine._places["broken"].replica.runner
        assert runner is not None
        forward = runner._forward

        def fail_once(batch: Any) -> Any:
            monkeypatch.setattr(runner, "_forward", forward)
            raise RuntimeError("a kernel failed")

        monkeypatch.setattr(runner, "_forward", fail_once)
        prompts = {i: prompt_of(20, seed=i) for i in range(4)}
        for sequence_id, prompt in prompts.items():
            driver.submit(sequence_id, prompt, "broken" if sequence_id < 2 else "healthy")
        driver.run()
        assert [driver.finished[i].error_code for i in range(4)] == ["internal_error"] * 2 + [""] * 2
        driver.submit(4, prompts[0], "broken")
        driver.run()
        assert_greedy(broken, driver, {4: prompts[0]}, 20)
        assert_greedy(healthy, driver, {i: prompts[i] for i in (2, 3)}, 20)


def test_what_cannot_run_is_ended_with_its_reason_and_hurts_nobody() -> None:
    with engine_driver() as driver:
        driver.load(tiny_model("llama"), max_model_len=100)
        driver.load(tiny_model("llama"), "capped", kv_cap_bytes=2**21)
        driver.submit(1, prompt_of(100, seed=0))
        driver.submit(2, [5, VOCAB_SIZE])
        driver.submit(3, [])
        driver.submit(4, [5], replica_id="nobody")
        driver.submit(5, prompt_of(90, seed=0), max_tokens=500)
        driver.submit(6, [5], output_ids=[6] * 20, max_tokens=20)
        driver.submit(7, prompt_of(20, seed=0), "capped", max_tokens=200)
        driver.submit(8, prompt_of(99, seed=0), output_ids=[5], max_tokens=20)
        driver.run()
        codes = {i: end.error_code or end.reason.value for i, end in driver.finished.items()}
        assert codes == {
            1: "context_length_exceeded",
            2: "invalid_value",
            3: "invalid_value",
            4: REPLICA_UNLOADED,
            5: "length",
            6: "length",
            7: "length",
            8: "length",
        }
        assert len(driver.tokens[5]) == 10
        assert 6 not in driver.tokens


def test_a_sequence_beyond_the_cap_ends_with_an_error_and_not_before() -> None:
    model = tiny_model("qwen2")  # two groups: a cap of one page can never hold both
    with engine_driver() as driver:
        driver.load(model, kv_cap_bytes=2**21)
        driver.submit(1, prompt_of(20, seed=0))
        driver.run()
        assert driver.finished[1].error_code == "insufficient_memory"


def test_the_models_own_end_ends_what_does_not_ignore_it() -> None:
    model = tiny_model("llama")
    (eos,) = model.config.eos_token_ids
    with engine_driver() as driver:
        driver.load(model)
        for seed in range(12):  # nearly uniform draws, so that the end comes up by chance
            for sequence_id, ignore_eos in ((seed, True), (100 + seed, False)):
                driver.submit(
                    sequence_id,
                    [7],
                    temperature=50.0,
                    seed=seed,
                    max_tokens=100,
                    ignore_eos=ignore_eos,
                )
        driver.run()
        num_stopped = 0
        for seed in range(12):
            whole, found, end = driver.tokens[seed], driver.tokens[100 + seed], driver.finished[100 + seed]
            assert len(whole) == 100
            if eos in whole:
                num_stopped += 1
                assert (end.reason, end.stop_token_id) == (FinishReason.STOP, eos)
                assert found == whole[: whole.index(eos) + 1]
            else:
                assert (end.reason, found) == (FinishReason.LENGTH, whole)
        assert 0 < num_stopped < 12


def test_logprobs_are_those_of_the_raw_distribution() -> None:
    model = tiny_model("qwen3")
    prompt = prompt_of(12, seed=8)
    with engine_driver() as driver:
        driver.load(model)
        driver.submit(1, prompt, temperature=0.7, top_k=5, logprobs=3, max_tokens=6, frequency_penalty=1.0)
        driver.submit(2, prompt, max_tokens=6)
        driver.submit(3, prompt, max_tokens=6, logprobs=0)
        driver.run()
        raw = model.logprobs(prompt, driver.tokens[1])
        for i, top in enumerate(driver.logprobs[1]):
            best = raw[i].topk(3)
            assert top.logprob == pytest.approx(float(raw[i, driver.tokens[1][i]]), abs=1e-4)
            assert top.logprobs == pytest.approx(best.values.tolist(), abs=1e-4)
            assert top.token_ids == tuple(best.indices.tolist())
        assert len(driver.logprobs[1]) == 6
        assert 2 not in driver.logprobs
        assert [top.token_ids for top in driver.logprobs[3]] == [()] * 6


def test_a_load_that_fails_gives_everything_back() -> None:
    model = tiny_model("llama")
    with engine_driver() as driver:
        before = driver.engine._arena.committed_bytes
        cut = os.memfd_create("cut")
        os.write(cut, model.packed[:-1])
        spec = LoadSpec("m", model.manifest.to_json(), 256, 2**21)
        opened = open_files()
        with pytest.raises(ArtifactError, match="host copy ends"):
            driver.engine.load(spec, cut)
        with pytest.raises(InsufficientMemoryError):
            driver.engine.load(replace(spec, weights_lease_bytes=2**20), model.host_copy())
        other = replace(model.manifest, engine="vllm").to_json()
        with pytest.raises(ArtifactError):
            driver.engine.load(replace(spec, manifest_json=other), model.host_copy())
        assert open_files() < opened  # the engine has closed the copy it was given
        assert driver.engine._arena.committed_bytes == before
        with pytest.raises(NotFoundError):
            driver.engine.wake("m", 2**21)
        driver.load(model)
        driver.submit(1, [5, 6])
        driver.run()


def test_the_earliest_deadline_goes_first_and_nobody_starves() -> None:
    with engine_driver(max_turns_waited=3, max_tokens_per_step=16) as driver:
        driver.load(tiny_model("llama"), "a")
        driver.load(tiny_model("mistral"), "b")
        driver.submit(1, prompt_of(5, seed=0), "a", max_tokens=30)
        driver.step()
        driver.submit(2, prompt_of(200, seed=0), "b", deadline_s=time.monotonic() + 600, max_tokens=1)
        order = [run_step(driver.engine)[0].replica_id for _ in range(8)]
        assert order == ["b", "b", "b", "a", "b", "b", "b", "a"]
        driver.run()


def test_a_load_on_another_thread_is_attached_between_busy_steps() -> None:
    model = tiny_model("llama")
    with engine_driver(max_running_sequences=1) as driver:
        driver.load(model, "a")
        for number in range(1, 5):  # one after the other
            driver.submit(number, prompt_of(20, seed=0), "a", max_tokens=200)
        with ThreadPoolExecutor(1) as threads:
            loading = threads.submit(driver.load, tiny_model("mistral"), "b")
            steps = 0
            while not loading.done() and driver.engine.has_work():
                driver.step()
                steps += 1
            assert loading.result(timeout=10) > 0
            driver.engine.sleep("b")
            waking = threads.submit(driver.engine.wake, "b", 2**30)
            while not waking.done() and driver.engine.has_work():
                driver.step()
            assert waking.result(timeout=10) > 0
        assert driver.engine.has_work()  # both came in while the first model still ran
        driver.submit(5, prompt_of(20, seed=1), "b")
        driver.run()
        assert_greedy(model, driver, {1: prompt_of(20, seed=0)}, 200)
        assert_greedy(tiny_model("mistral"), driver, {5: prompt_of(20, seed=1)}, 20)


def test_no_step_runs_while_a_copy_of_weights_has_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = CoreTurns()
    monkeypatch.setattr("engines.torch.engine.CoreTurns", lambda signal: turns)
    with engine_driver() as driver, ThreadPoolExecutor(1) as threads:
        driver.load(tiny_model("llama"))
        driver.submit(1, prompt_of(20, seed=0))
        with turns.copy(0.5) as is_over:
            stepping = threads.submit(run_step, driver.engine)
            until(is_over, "the step waits")
            assert not stepping.done()
        assert stepping.result(timeout=10)


def test_stats_add_up() -> None:
    with engine_driver(max_running_sequences=4) as driver:
        weights_bytes = driver.load(tiny_model("llama"))
        for sequence_id in range(6):
            driver.submit(sequence_id, prompt_of(10, seed=sequence_id), max_tokens=8)
        driver.step()
        stats = driver.engine.stats()
        (replica,) = stats.replicas
        assert (replica.residency, replica.num_running, replica.num_queued) == ("resident", 4, 2)
        assert replica.weights_bytes == weights_bytes
        assert replica.kv_live_bytes == 4 * 16 * 3 * 2048
        assert replica.kv_bytes == 2**21
        assert stats.kv_bytes == 2 * 2**21
        driver.run()
        stats = driver.engine.stats()
        (replica,) = stats.replicas
        assert (replica.prompt_tokens_total, replica.generation_tokens_total) == (60, 48)
        assert (replica.kv_live_bytes, replica.kv_bytes) == (0, 2**21)
        assert replica.kv_cached_bytes == 6 * 16 * 3 * 2048  # one full block of each
        assert stats.steps_total == 16
        capabilities = driver.engine.capabilities()
        assert capabilities.elastic_kv
        config = driver.engine._config
        assert capabilities.max_step_tokens == config.max_tokens_per_step
        assert capabilities.max_sequences == config.max_running_sequences


def test_stats_while_another_replica_is_attached(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    with engine_driver() as driver, ThreadPoolExecutor(1) as loader:
        driver.load(model, "a")
        of_replica = TorchReplica.stats

        def stats(replica: TorchReplica, pool: KVPool) -> ReplicaStats:
            if replica.replica_id == "a":
                loader.submit(driver.load, model, "b").result()
            return of_replica(replica, pool)

        monkeypatch.setattr(TorchReplica, "stats", stats)
        assert [replica.replica_id for replica in driver.engine.stats().replicas] == ["a"]


@pytest.mark.parametrize("moved_bytes", [1, 8 * PAGE_BYTES], ids=["block by block", "all at once"])
def test_blocks_are_moved_together_for_a_model_that_is_short_of_pages(
    moved_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engines.torch.replica._MOVED_BYTES", moved_bytes)
    spread, short = tiny_model("llama"), tiny_model("qwen3")
    prompts = {i: prompt_of(200, seed=i) for i in range(6)}
    with engine_driver(lease_pages=4) as driver:
        driver.load(spread, "spread")
        driver.load(short, "short")
        for i in range(4):  # 13 blocks each, of 21 to a page
            driver.submit(i, prompts[i], "spread", cache_scope=None, max_tokens=40)
        while not driver.tokens[3]:
            driver.step()
        driver.engine.cancel([0, 2])
        driver.step()
        assert driver.engine.stats().replicas[0].kv_bytes == 3 * PAGE_BYTES
        for i in (4, 5):
            driver.submit(i, prompts[i], "short", cache_scope=None, max_tokens=20)
        while not driver.tokens[5]:
            driver.step()
        stats = {replica.replica_id: replica for replica in driver.engine.stats().replicas}
        assert stats["spread"].kv_bytes == stats["short"].kv_bytes == 2 * PAGE_BYTES
        assert stats["spread"].num_running == stats["short"].num_running == 2
        driver.run()
        assert not any(replica.preemptions_total for replica in driver.engine.stats().replicas)
        assert_greedy(spread, driver, {i: prompts[i] for i in (1, 3)}, 40)
        assert_greedy(short, driver, {i: prompts[i] for i in (4, 5)}, 20)


def test_a_step_tells_its_seconds_and_what_each_sequence_computed() -> None:
    with engine_driver(max_tokens_per_step=16) as driver:
        driver.load(tiny_model("llama"))
        driver.submit(1, prompt_of(5, seed=0), max_tokens=6)
        driver.submit(2, prompt_of(30, seed=1), max_tokens=2)
        steps = []
        began_s = time.monotonic()
        while driver.engine.has_work():
            [output] = run_step(driver.engine)
            steps.append(output)
        took_s = time.monotonic() - began_s
        assert [step.computed_tokens for step in steps] == [
            {1: 5, 2: 11},
            {1: 1, 2: 15},
            {1: 1, 2: 4},
            {1: 1, 2: 1},
            {1: 1},
            {1: 1},
        ]
        assert [step.sequence_ids for step in steps] == [[1], [1], [1, 2], [1, 2], [1], [1]]
        assert all(step.seconds > 0 for step in steps)
        assert took_s / 2 < sum(step.seconds for step in steps) < took_s
