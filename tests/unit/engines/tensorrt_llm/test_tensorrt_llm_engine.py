"""The adapter, whole, against the double."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.small_checkpoint import write_checkpoint
from support.tensorrt_llm_double import LlmDriver, double, manifest_of

from engines.api import REPLICA_UNLOADED, DeviceLostError, Engine, FinishReason, run_step
from engines.checkpoint.folder import folder_kv_bytes
from engines.config import TensorRtLlmConfig, WorkerOptions
from engines.kinds import KINDS
from engines.link.flight_recorder import FlightRecorder
from engines.link.worker_memory import WorkerMemory
from memory_manager.kv_spec import PAGE_BYTES, round_to_pages
from memory_manager.ports import LeaseStatus, WarmPlace
from mooring.errors import (
    ArtifactError,
    ConfigurationError,
    InsufficientMemoryError,
    InternalError,
    NotFoundError,
)

VERSIONS = ("1.2.1", "1.4.0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "m")


@pytest.fixture(params=["1.4.0"])
def llmapi(request: pytest.FixtureRequest) -> Iterator[Any]:
    with double(request.param) as module:
        yield module


on_both = pytest.mark.parametrize("llmapi", VERSIONS, indirect=True)


@pytest.fixture
def driver(llmapi: Any, folder: Path) -> Iterator[LlmDriver]:
    driver = LlmDriver(folder)
    driver.load()
    yield driver
    driver.engine.close()


def text_of(folder: Path, *prompt: int, num_tokens: int = 8, **sampling: Any) -> list[int]:
    """Tokens that the double says on its own."""
    driver = LlmDriver(folder)
    driver.load()
    driver.submit(1, prompt, max_tokens=num_tokens, **sampling)
    driver.run()
    driver.engine.close()
    return driver.tokens[1]


def test_it_is_an_engine(driver: LlmDriver) -> None:
    engine: Engine = driver.engine
    assert engine.capabilities().engine == "tensorrt_llm"
    assert not engine.capabilities().elastic_kv


@on_both
def test_tokens_come_in_order_with_their_end(driver: LlmDriver) -> None:
    for number in range(20):
        driver.submit(number, (number + 1, 2, 3), max_tokens=number % 4 + 1)
    driver.run()
    for number in range(20):
        assert len(driver.tokens[number]) == number % 4 + 1
        assert driver.finished[number].reason is FinishReason.LENGTH
        assert driver.computed_tokens[number] == 3 + number % 4, "of the last token no KV is computed"
    assert not driver.engine.has_work()


def test_a_stop_token_ends_it_and_is_in_the_output(driver: LlmDriver, folder: Path) -> None:
    said = text_of(folder, 5, 6, 7)
    driver.submit(1, stop_token_ids=(said[3],))
    driver.run()
    assert driver.tokens[1] == said[:4]
    assert (driver.finished[1].reason, driver.finished[1].stop_token_id) == (FinishReason.STOP, said[3])


def test_a_stop_token_at_the_last_place_is_a_stop(driver: LlmDriver, folder: Path) -> None:
    said = text_of(folder, 5, 6, 7)
    driver.submit(1, stop_token_ids=(said[3],), max_tokens=4)
    driver.run()
    assert (driver.finished[1].reason, driver.finished[1].stop_token_id) == (FinishReason.STOP, said[3])


def test_logprobs_of_every_token(driver: LlmDriver) -> None:
    driver.submit(1, logprobs=2)
    driver.submit(2, logprobs=0)
    driver.submit(3)
    driver.run()
    assert [each.logprob for each in driver.logprobs[1]] == [-0.5] * 8
    assert {len(each.token_ids) for each in driver.logprobs[1]} == {2}
    assert [each.token_ids for each in driver.logprobs[2]] == [()] * 8
    assert driver.logprobs[3] == []


def test_the_output_of_an_earlier_life_goes_on(driver: LlmDriver, folder: Path) -> None:
    said = text_of(folder, 5, 6, 7)
    driver.submit(1, output_ids=said[:3])
    driver.run()
    assert driver.tokens[1] == said[3:]


@on_both
def test_a_refusal_comes_before_any_token_and_by_name(driver: LlmDriver) -> None:
    driver.submit(1, prompt_logprobs=1)
    driver.submit(2, ())
    driver.submit(3, (1,) * 256)
    driver.submit(4, replica_id="other")
    driver.run()
    assert driver.finished[1].error_code == "unsupported_parameter"
    assert "prompt_logprobs" in driver.finished[1].error_message
    assert driver.finished[2].error_code == "invalid_value"
    assert driver.finished[3].error_code == "context_length_exceeded"
    assert driver.finished[4].error_code == REPLICA_UNLOADED
    assert not driver.tokens


def test_a_cancelled_sequence_says_nothing_more_and_leaves_the_package(
    driver: LlmDriver, llmapi: Any
) -> None:
    driver.submit(1, max_tokens=10_000)
    driver.run_until_said(1, 2)
    driver.engine.cancel([1, 77])
    driver.run()
    assert driver.finished[1].reason is FinishReason.CANCELLED
    [llm] = llmapi.control.llms
    driver.submit(2)
    driver.run()
    assert not llm._running


def test_requests_of_higher_priority_go_first(llmapi: Any, folder: Path) -> None:
    driver = LlmDriver(folder, TensorRtLlmConfig(max_batch_size=1))
    driver.load()
    llmapi.control.step_s = 0.02
    for number, priority in enumerate((0, 0, 5, -5)):
        driver.submit(number, priority=priority, max_tokens=3)
    driver.run()
    order = list(driver.finished)
    assert order.index(2) < order.index(1) < order.index(3)
    driver.engine.close()


def test_prefixes_are_shared_within_a_scope_alone(driver: LlmDriver) -> None:
    prompt = tuple(range(1, 80))
    for number, scope in enumerate((b"a", b"a", b"b", None, None)):
        driver.submit(number, prompt, cache_scope=scope)
        driver.run()
    assert [driver.cached_tokens.get(number) for number in range(5)] == [0, 64, 0, None, None]
    assert driver.computed_tokens[0] - driver.computed_tokens[1] == 64
    stats = driver.engine.stats().replicas[0]
    assert (stats.prefix_query_tokens_total, stats.prefix_hit_tokens_total) == (5 * 79, 64)


def test_no_prefix_is_found_that_lay_there_before_a_sleep(driver: LlmDriver) -> None:
    prompt = tuple(range(1, 80))
    driver.submit(1, prompt)
    driver.run()
    driver.engine.sleep("m")
    driver.engine.wake("m", 1 << 30)
    for number in (2, 3):
        driver.submit(number, prompt)
        driver.run()
    assert [driver.cached_tokens[number] for number in (1, 2, 3)] == [0, 0, 64]


def test_figures_that_cannot_be_had_hurt_nobody(
    driver: LlmDriver, llmapi: Any, caplog: pytest.LogCaptureFixture
) -> None:
    [llm] = llmapi.control.llms
    llm.get_stats_async = lambda timeout: 1 / 0
    driver.engine.stats()
    driver.submit(1)
    driver.run()
    assert len(driver.tokens[1]) == 8
    assert "gives no figures of m" in caplog.text


def test_the_package_gets_bytes_and_settings(llmapi: Any, folder: Path) -> None:
    driver = LlmDriver(folder, TensorRtLlmConfig(max_batch_size=7, host_kv_bytes=4096))
    driver.load(kv_guarantee_bytes=9 * PAGE_BYTES)
    [llm] = llmapi.control.llms
    cache = llm.values["kv_cache_config"].values
    assert cache == {
        "max_gpu_total_bytes": 9 * PAGE_BYTES,
        "host_cache_size": 4096,
        "enable_block_reuse": True,
    }
    assert (llm.values["max_batch_size"], llm.values["max_seq_len"]) == (7, 256)
    assert llm.values["sleep_config"].values["restore_modes"] == {
        "model_weights": "PINNED",
        "kv_cache": "NONE",
    }
    driver.engine.close()


def test_kv_is_a_whole_sequence_at_least(driver: LlmDriver, folder: Path) -> None:
    manifest = manifest_of(folder)
    longest_bytes = round_to_pages(folder_kv_bytes(manifest.config, manifest.precision, 256))
    stats = driver.engine.stats()
    assert stats.kv_bytes == stats.replicas[0].kv_bytes == longest_bytes
    assert driver.engine.set_lease(longest_bytes, 1) is LeaseStatus.APPLIED
    assert driver.engine.set_lease(0, 2) is LeaseStatus.DEFERRED
    assert driver.engine.set_lease(1, 2) is LeaseStatus.CONFLICT
    assert driver.engine.set_lease(0, 1) is LeaseStatus.STALE
    driver.engine.unload("m")
    assert driver.engine.set_lease(0, 2) is LeaseStatus.APPLIED


def test_a_lease_that_is_too_small_is_refused(llmapi: Any, folder: Path) -> None:
    driver = LlmDriver(folder)
    with pytest.raises(InsufficientMemoryError):
        driver.load(weights_lease_bytes=1)
    assert not llmapi.control.llms
    assert driver.engine.stats().replicas == ()
    driver.engine.close()


def test_the_descriptor_is_closed_whatever_happens(llmapi: Any, folder: Path) -> None:
    driver = LlmDriver(folder)
    for changes, error in (({"weights_lease_bytes": 1}, InsufficientMemoryError), ({}, None)):
        descriptor = os.open(folder, os.O_RDONLY)
        if error is None:
            driver.engine.load(driver.spec(**changes), descriptor)
        else:
            with pytest.raises(error):
                driver.engine.load(driver.spec(**changes), descriptor)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
    driver.engine.close()


def test_what_cannot_be_loaded_says_why(llmapi: Any, folder: Path) -> None:
    driver = LlmDriver(folder)
    llmapi.control.fail["load"] = "refused"
    with pytest.raises(InternalError, match="out of memory"):
        driver.load()
    with pytest.raises(NotFoundError):
        driver.engine.sleep("m")
    with pytest.raises(ArtifactError):
        driver.engine.load(driver.spec().__class__("m", b"{}", 256, 1 << 30), os.open(folder, os.O_RDONLY))
    driver.engine.close()


@on_both
def test_sleep_parks_and_wake_goes_on_where_it_was(driver: LlmDriver, folder: Path, llmapi: Any) -> None:
    expected = text_of(folder, 5, 6, 7, num_tokens=40)
    llmapi.control.step_s = 0.005
    driver.submit(1, max_tokens=40)
    driver.run_until_said(1, 3)
    held_bytes = driver.engine.stats().replicas[0].weights_bytes
    assert driver.engine.sleep("m") == held_bytes
    assert driver.engine.sleep("m") == 0
    driver.submit(2, max_tokens=3)
    stats = driver.engine.stats()
    assert (stats.replicas[0].residency, stats.replicas[0].num_queued) == ("warm", 2)
    assert (stats.replicas[0].weights_bytes, stats.kv_bytes) == (0, 0)
    driver.run()
    assert not driver.finished, "the step thread rests, and nothing has ended"
    assert driver.engine.wake("m", 1 << 30) == held_bytes
    driver.run()
    assert driver.tokens[1] == expected
    assert len(driver.tokens[2]) == 3


@on_both
def test_who_sleeps_depends_on_the_version(driver: LlmDriver, llmapi: Any) -> None:
    abilities = driver.engine.capabilities()
    [llm] = llmapi.control.llms
    driver.engine.sleep("m")
    driver.engine.wake("m", 1 << 30)
    if abilities.sleep:
        assert (abilities.warm, len(llmapi.control.llms)) == (WarmPlace.WORKER, 1)
    else:
        assert (abilities.warm, len(llmapi.control.llms)) == (WarmPlace.NOWHERE, 2)
        assert llm._is_shut_down


@pytest.mark.parametrize("call", ["release", "resume"])
def test_a_move_that_stops_half_way_loses_the_device(driver: LlmDriver, llmapi: Any, call: str) -> None:
    def move() -> int:
        return driver.engine.sleep("m") if call == "release" else driver.engine.wake("m", 1 << 30)

    if call == "resume":
        driver.engine.sleep("m")
    llmapi.control.fail[call] = "refused"
    with pytest.raises(InternalError, match="refused"):
        move()
    llmapi.control.fail[call] = "torn"
    with pytest.raises(DeviceLostError, match="failed"):
        move()


def test_a_wake_beyond_its_lease_is_refused_and_it_sleeps_on(driver: LlmDriver) -> None:
    driver.engine.sleep("m")
    with pytest.raises(InsufficientMemoryError):
        driver.engine.wake("m", 1)
    assert driver.engine.wake("m", 1 << 30) > 1


def test_unloading_ends_what_runs(driver: LlmDriver, llmapi: Any) -> None:
    driver.submit(1, max_tokens=10_000)
    driver.run_until_said(1, 1)
    driver.engine.unload("m")
    driver.engine.unload("m")
    driver.run()
    assert driver.finished[1].error_code == REPLICA_UNLOADED
    assert llmapi.control.llms[0]._is_shut_down
    assert driver.load() > 0
    driver.submit(2)
    driver.run()
    assert len(driver.tokens[2]) == 8


def test_one_request_that_fails_hurts_no_other(driver: LlmDriver, llmapi: Any) -> None:
    llmapi.control.poison = 66
    driver.submit(1, (66, 1))
    driver.submit(2)
    driver.run()
    assert driver.finished[1].reason is FinishReason.ERROR
    assert "CUDA says no" in driver.finished[1].error_message
    assert driver.finished[2].reason is FinishReason.LENGTH


def test_an_end_without_a_reason_is_an_error(driver: LlmDriver, llmapi: Any) -> None:
    llmapi.control.hides_end = True
    driver.submit(1)
    driver.run()
    assert driver.finished[1].error_code == "internal_error"


def test_a_package_that_is_broken_ends_the_worker(driver: LlmDriver, llmapi: Any) -> None:
    llmapi.control.is_broken = True
    driver.submit(1)
    with pytest.raises(InternalError, match="broken"):
        driver.run()


def test_a_package_that_is_silent_ends_the_worker(llmapi: Any, folder: Path) -> None:
    driver = LlmDriver(folder, TensorRtLlmConfig(max_silence_s=0.05))
    driver.load()
    llmapi.control.is_silent = True
    driver.submit(1)
    with pytest.raises(DeviceLostError, match="said nothing"):
        driver.run()


def test_silence_counts_from_the_moment_that_somebody_waits(llmapi: Any, folder: Path) -> None:
    now_s = 0.0
    driver = LlmDriver(folder, clock=lambda: now_s)
    driver.load()
    now_s = 1000.0
    driver.submit(1)
    driver.run()
    assert len(driver.tokens[1]) == 8
    driver.engine.close()


def test_the_recorder_knows_what_runs(llmapi: Any, folder: Path) -> None:
    recorder = FlightRecorder(memoryview(bytearray(FlightRecorder.NUM_BYTES)))
    driver = LlmDriver(folder, recorder=recorder)
    driver.load()
    for number in (3, 4):
        driver.submit(number, max_tokens=1000)
    driver.engine.launch()
    assert recorder.sequence_ids() == [3, 4]
    driver.engine.close()


def test_figures_come_from_the_package(driver: LlmDriver, llmapi: Any) -> None:
    driver.submit(1, max_tokens=10_000)
    driver.run_until_said(1, 1)
    stats = driver.run_until_figures()
    assert 0 < stats.replicas[0].kv_live_bytes < stats.replicas[0].kv_bytes
    assert stats.steps_total > 0
    assert stats.replicas[0].num_running == 1


def test_seconds_of_steps_add_up_and_leave_idleness_out(llmapi: Any, folder: Path) -> None:
    now_s, seconds = 0.0, 0.0

    def clock() -> float:
        nonlocal now_s
        now_s += 0.001
        return now_s

    driver = LlmDriver(folder, clock=clock)
    driver.load()
    for number in range(2):
        now_s += 1000.0
        driver.submit(number)
        ended = False
        while not ended:
            outputs = run_step(driver.engine)
            seconds += sum(output.seconds for output in outputs)
            ended = any(output.finished for output in outputs)
    assert 0 < seconds < 1000
    driver.engine.close()


def test_a_gpu_is_named_to_the_package(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with double():
        memory_fd = WorkerMemory.make()
        options = WorkerOptions(
            "tensorrt_llm", "cuda:2", 1 << 30, tmp_path / "socket", -1, memory_fd, {"tensor_parallel_size": 2}
        )
        engine = KINDS["tensorrt_llm"].load_factory()(options, WorkerMemory(memory_fd).recorder)
        os.close(memory_fd)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"
        assert engine.capabilities().device == "cuda:2"


@pytest.mark.parametrize("version", ["1.1.0", "0.21.0", "nonsense"])
def test_a_version_that_is_too_old_is_refused(folder: Path, version: str) -> None:
    with double(version), pytest.raises(ConfigurationError, match="too old"):
        LlmDriver(folder)


def test_without_the_package_the_worker_says_so(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be imported"):
        LlmDriver(folder)


def test_speculation_needs_a_version(folder: Path) -> None:
    config = TensorRtLlmConfig(speculative_config='{"decoding_type": "NGram"}')
    with double("1.2.1"), pytest.raises(ConfigurationError, match="needs tensorrt_llm"):
        LlmDriver(folder, config).load()
    with pytest.raises(ConfigurationError, match="JSON"):
        TensorRtLlmConfig(speculative_config="[1]")
    with pytest.raises(ConfigurationError, match="JSON"):
        TensorRtLlmConfig(speculative_config="{")
