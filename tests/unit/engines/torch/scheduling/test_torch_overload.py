"""The real scheduler under more load than there is KV for: who is admitted, who makes way, and that all end."""

from __future__ import annotations

import itertools
import time
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from support.bare_runner import BareModel, BareWorker, runner_without_a_model, step, worker_without_models
from support.torch_engines import EngineDriver, engine_driver, tiny_model

from engines.api import FinishReason, SamplingParams, SequenceRequest
from engines.torch.scheduling.compose import most_late_tokens
from engines.torch.scheduling.resume import Resumption
from memory_manager.kv_spec import PAGE_BYTES

LATE_S = 0.0
NUM_TOKENS = 40


def in_time_s() -> float:
    return time.monotonic() + 1000


def prompt(number: int) -> list[int]:
    return [3 + (7 * number + 11 * j) % 290 for j in range(60 + number % 5)]


@lru_cache
def alone(kind: str, number: int) -> list[int]:
    return tiny_model(kind).generate(prompt(number), NUM_TOKENS)


def submit(driver: EngineDriver, number: int, deadline_s: float, replica_id: str = "llama") -> None:
    driver.submit(
        number,
        prompt(number % 5),
        replica_id,
        deadline_s=deadline_s,
        cache_scope=None if number % 3 else b"",
        max_tokens=NUM_TOKENS,
    )


def test_far_too_much_load_costs_few_preemptions_and_changes_no_text() -> None:
    kinds = {number: "qwen2" if number % 4 == 3 else "llama" for number in range(48)}
    with engine_driver(lease_pages=6, max_running_sequences=32) as driver:
        for kind in ("llama", "qwen2"):
            driver.load(tiny_model(kind), kind, max_model_len=128)
        for number, kind in kinds.items():
            submit(driver, number, in_time_s() if number % 2 else LATE_S, kind)
            driver.step()
        driver.run()
        assert driver.preemptions() <= len(kinds) / 2
        for number, kind in kinds.items():
            assert driver.finished[number].reason is FinishReason.LENGTH
            assert driver.tokens[number] == alone(kind, number % 5)


def test_late_ones_make_way_for_one_that_is_in_time_and_end_after_it() -> None:
    with engine_driver(lease_pages=2, max_running_sequences=32) as driver:
        driver.load(tiny_model("llama"), "llama", max_model_len=128)
        for number in range(12):
            submit(driver, number, LATE_S)
        for _ in range(12):
            driver.step()
        [before] = driver.engine.stats().replicas
        assert before.num_running
        assert before.num_queued
        assert before.preemptions_total == 0, "no more are admitted than can go on to their ends"
        for number in (12, 13, 14):
            submit(driver, number, in_time_s())
        for _ in range(12):
            driver.step()
        assert all(driver.tokens[number] for number in (12, 13, 14))
        assert 1 <= driver.preemptions() <= 4, "for each, and for a late one that has its turn before them"
        driver.run()
        assert all(driver.tokens[number] == alone("llama", number % 5) for number in range(15))
        assert list(driver.finished)[-1] < 12


def test_those_in_time_make_way_for_one_of_a_higher_priority_and_end_after_it() -> None:
    with engine_driver(lease_pages=2, max_running_sequences=32) as driver:
        driver.load(tiny_model("llama"), "llama", max_model_len=128)
        for number in range(12):
            submit(driver, number, in_time_s())
        for _ in range(12):
            driver.step()
        assert driver.engine.stats().replicas[0].num_queued
        assert driver.preemptions() == 0
        for number in (12, 13, 14):
            driver.submit(
                number,
                prompt(number % 5),
                deadline_s=in_time_s(),
                priority=1,
                cache_scope=None,
                max_tokens=NUM_TOKENS,
                replica_id="llama",
            )
        for _ in range(12):
            driver.step()
        assert all(driver.tokens[number] for number in (12, 13, 14))
        assert 2 <= driver.preemptions() <= 6, "the first of a worker is admitted in any case"
        driver.run()
        assert all(driver.tokens[number] == alone("llama", number % 5) for number in range(15))
        assert list(driver.finished)[-1] < 12


def test_nobody_makes_way_for_a_lower_priority() -> None:
    with engine_driver(lease_pages=2, max_running_sequences=32) as driver:
        driver.load(tiny_model("llama"), "llama", max_model_len=128)
        for number in range(12):
            driver.submit(
                number, prompt(number), "llama", deadline_s=LATE_S, priority=1, max_tokens=NUM_TOKENS
            )
        for _ in range(12):
            driver.step()
        submit(driver, 12, in_time_s())
        driver.run()
        assert driver.preemptions() == 0
        assert list(driver.finished)[-1] == 12


def test_a_late_one_ends_though_others_that_are_in_time_never_stop_coming() -> None:
    with runner_without_a_model() as runner:

        def submit_one(number: int, deadline_s: float) -> None:
            token_ids = (np.arange(12) + number).astype(np.int32) % 8
            sampling = SamplingParams(temperature=0.0, max_tokens=20)
            runner.submit(SequenceRequest(number, "m", token_ids, sampling, deadline_s=deadline_s), number)

        for number in range(3):
            submit_one(number, deadline_s=2.0)
        ended: list[int] = []
        num_submitted = 3
        for number in range(600):
            while runner.num_waiting < 6:
                submit_one(num_submitted, deadline_s=3.0)
                num_submitted += 1
            if number == 10:
                submit_one(10_000, deadline_s=1.0)
            runner.note_late(1.5)
            output = step(runner, number)
            ended += [end.sequence_id for end in output.finished] if output is not None else []
            if 10_000 in ended:
                return
        raise AssertionError("it starved")


def test_one_that_waits_for_kv_is_looked_up_only_when_others_let_go_of_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked_up: list[int] = []
    find = Resumption.find
    monkeypatch.setattr(
        Resumption,
        "find",
        lambda self, pending: (looked_up.append(pending.request.sequence_id), find(self, pending))[1],
    )
    with engine_driver(lease_pages=3, max_running_sequences=32) as driver:
        driver.load(tiny_model("llama"), "llama", max_model_len=128)
        driver.load(tiny_model("qwen2"), "qwen2", max_model_len=128)
        for number in range(24):
            submit(driver, number, in_time_s(), "qwen2" if number % 2 else "llama")
        num_steps = 0
        while driver.engine.has_work():
            driver.step()
            num_steps += 1
        assert num_steps > 100
        assert len(looked_up) < 24 * 3


def test_the_kv_that_is_wanted_follows_the_outputs_that_there_were() -> None:
    def wanted_bytes(num_ended: int) -> int:
        with engine_driver(lease_pages=2, max_running_sequences=64) as driver:
            driver.load(tiny_model("llama"))
            for number in range(num_ended):
                driver.submit(1000 + number, [5, 6, 7], max_tokens=4)
            driver.run()
            for number in range(24):
                driver.submit(number, [3 + number % 50] * 40, max_tokens=200, cache_scope=None)
            for _ in range(3):
                driver.step()
            stats = driver.engine.stats()
            return stats.kv_wanted_bytes - stats.kv_lease_bytes

    assert wanted_bytes(60) + 2 * PAGE_BYTES < wanted_bytes(0)


def of_length(
    number: int, replica_id: str, num_tokens: int, deadline_s: float, **fields: Any
) -> SequenceRequest:
    token_ids = np.random.default_rng(number).integers(0, 8, num_tokens).astype(np.int32)
    sampling = SamplingParams(temperature=0.0, max_tokens=fields.pop("max_tokens", 4))
    return SequenceRequest(number, replica_id, token_ids, sampling, deadline_s=deadline_s, **fields)


def first_steps(
    worker: BareWorker, submitted: list[tuple[int, str, SequenceRequest]], num_steps: int
) -> dict[int, int]:
    """The step of each one's first token. What is submitted comes at the given step; the clock counts steps."""
    found: dict[int, int] = {}
    arrivals = itertools.count()
    for now in range(num_steps):
        for at, replica_id, request in submitted:
            if at == now:
                worker.runners[replica_id].submit(request, next(arrivals))
        for runner in worker.runners.values():
            runner.note_late(now)
            if runner.has_sequences and (output := step(runner, now)) is not None:
                for number in output.first_tokens:
                    found.setdefault(number, now)
    return found


@pytest.mark.parametrize("models", [["0"], ["0", "1"]])
def test_late_prompts_hold_up_nobody_in_time_whatever_model_is_theirs(models: list[str]) -> None:
    late = [(1, "0", of_length(10 + number, "0", 4000, 0.0)) for number in range(4)]
    short = [
        (3 * number, models[-1], of_length(100 + number, models[-1], 40, 3 * number + 20.0))
        for number in range(100)
    ]
    with worker_without_models(
        [BareModel(8192) for _ in models], num_pages=2000, max_tokens_per_step=512, max_running_sequences=32
    ) as worker:
        found = first_steps(worker, [*late, *short], 400)
    assert all(found[100 + number] <= 3 * number + 20 for number in range(100))
    assert all(10 + number in found for number in range(4)), "they get on beside them"


def test_a_late_prompt_of_a_higher_priority_yields_to_nobody() -> None:
    running = (0, "0", of_length(1, "0", 12, 1e9, max_tokens=400))
    late = [(2, "0", of_length(10 + number, "0", 2000, 1.0, priority=number)) for number in range(2)]
    with worker_without_models(
        [BareModel(8192)], num_pages=2000, max_tokens_per_step=512, max_running_sequences=32
    ) as worker:
        found = first_steps(worker, [running, *late], 60)
    assert found[11] <= 2 + 5
    assert found[10] >= 2 + 2000 // most_late_tokens(512)
