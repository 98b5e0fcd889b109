"""What ``engines.api.Engine`` means, tried on every engine that runs in a worker."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
from support.engine_contract import ENGINES, ContractEngine, contract_engine
from support.open_files import open_files
from support.step_driver import StepDriver

from engines.api import REPLICA_UNLOADED, FinishReason, SamplingParams
from engines.kinds import KINDS
from memory_manager.kv_spec import PAGE_BYTES
from memory_manager.ports import LeaseStatus
from mooring.errors import ConflictError, InsufficientMemoryError, NotFoundError, UnsupportedFieldError

_PROMPT = [5, 6, 7, 8, 9, 10, 11]
_NUM_TOKENS = 12
# A value of each parameter that is not its default, and whether it leaves greedy output as it is.
_PARAMETERS: dict[str, tuple[Any, bool]] = {
    "temperature": (0.7, False),
    "top_p": (1e-6, True),
    "top_k": (1, True),
    "min_p": (1.0, True),
    "repetition_penalty": (1.3, False),
    "presence_penalty": (0.5, False),
    "frequency_penalty": (0.5, False),
    "min_tokens": (3, True),
    "seed": (99, True),
    "ignore_eos": (True, True),
    "choice": (2, True),
    "max_tokens": (_NUM_TOKENS, True),
    "stop_token_ids": ((3,), False),
    "logprobs": (2, True),
    "prompt_logprobs": (2, True),
    "logit_bias": (((3, 1.0),), False),
    "bad_words_ids": (((3, 4),), False),
}


@pytest.fixture(params=ENGINES)
def contract(request: pytest.FixtureRequest) -> ContractEngine:
    return contract_engine(request.param)


@pytest.fixture
def driver(contract: ContractEngine) -> Iterator[StepDriver]:
    """An engine with one replica, ``m``."""
    with contract.driving() as driver:
        contract.load(driver)
        yield driver


def greedy(driver: StepDriver, number: int, num_tokens: int = _NUM_TOKENS, **sampling: Any) -> list[int]:
    driver.submit(number, _PROMPT, max_tokens=num_tokens, **sampling)
    driver.run()
    return driver.tokens[number]


# Memory.


def test_what_it_can_is_what_its_row_says(contract: ContractEngine, driver: StepDriver) -> None:
    told, row = driver.engine.capabilities(), KINDS[contract.name]
    assert (told.engine, told.sleep, told.elastic_kv) == (contract.name, contract.sleeps, contract.elastic)
    assert (told.sleep, told.elastic_kv, told.warm) == (row.sleep, row.elastic_kv, row.warm)


def test_a_replica_loads_within_its_lease_and_not_over_it(contract: ContractEngine) -> None:
    with contract.driving() as driver:
        opened = open_files()
        with pytest.raises(InsufficientMemoryError):
            contract.load(driver, weights_lease_bytes=4096)
        assert open_files() <= opened, "the descriptor is the engine's, and is closed"
        assert not driver.engine.stats().replicas
        assert 0 < contract.load(driver) <= contract.weights_bytes
        (replica,) = driver.engine.stats().replicas
        assert (replica.replica_id, replica.residency) == ("m", "resident")
        assert 0 < replica.weights_bytes <= contract.weights_bytes


def test_a_replica_that_is_there_is_loaded_again_at_no_cost(
    contract: ContractEngine, driver: StepDriver
) -> None:
    before = driver.engine.stats().replicas[0].weights_bytes
    opened = open_files()
    assert contract.load(driver) == before
    assert open_files() <= opened


def test_leases_are_absolute_and_revisioned(contract: ContractEngine, driver: StepDriver) -> None:
    engine = driver.engine
    if not contract.elastic:
        held_bytes = engine.stats().kv_bytes
        assert held_bytes > 0, "its KV came with its load"
        assert engine.set_lease(held_bytes, 100) is LeaseStatus.APPLIED
        assert engine.set_lease(0, 101) is LeaseStatus.DEFERRED
        engine.unload("m")
        assert engine.set_lease(0, 101) is LeaseStatus.APPLIED
        return
    assert engine.set_lease(64 * PAGE_BYTES, 100) is LeaseStatus.APPLIED
    assert engine.set_lease(64 * PAGE_BYTES, 100) is LeaseStatus.APPLIED
    assert engine.set_lease(65 * PAGE_BYTES, 100) is LeaseStatus.CONFLICT
    assert engine.set_lease(65 * PAGE_BYTES, 99) is LeaseStatus.STALE
    stats = engine.stats()
    assert (stats.kv_lease_bytes, stats.kv_lease_revision) == (64 * PAGE_BYTES, 100)
    assert engine.set_lease(16 * PAGE_BYTES, 101) is LeaseStatus.APPLIED


def test_a_cancelled_sequence_ends_once_and_frees_its_memory(driver: StepDriver) -> None:
    before = driver.engine.stats().replicas[0].kv_live_bytes
    for number in (1, 2, 3):
        driver.submit(number, [number, *_PROMPT], max_tokens=200)
    while not (driver.tokens[1] and driver.tokens[2]):
        driver.step()
    driver.engine.cancel([1, 3, 77])
    driver.run()
    assert {number: each.reason for number, each in driver.finished.items()} == {
        1: FinishReason.CANCELLED,
        2: FinishReason.LENGTH,
        3: FinishReason.CANCELLED,
    }
    assert len(driver.tokens[2]) == 200
    (replica,) = driver.engine.stats().replicas
    assert (replica.kv_live_bytes, replica.num_running, replica.num_queued) == (before, 0, 0)


# What it says.


def test_every_parameter_is_named_here() -> None:
    assert set(_PARAMETERS) == {each.name for each in fields(SamplingParams)}


@pytest.mark.parametrize("name", _PARAMETERS)
def test_a_parameter_is_obeyed_or_refused_by_name(
    contract: ContractEngine, driver: StepDriver, name: str
) -> None:
    value, leaves_greedy = _PARAMETERS[name]
    # What truncates is tried where it matters: with one token left of each distribution, noise decides nothing.
    sampling = {"temperature": 1.0} if name in ("top_p", "top_k", "min_p") else {}
    driver.submit(1, _PROMPT, **{"max_tokens": _NUM_TOKENS, **sampling, name: value})
    driver.submit(2, _PROMPT, max_tokens=_NUM_TOKENS)
    driver.run()
    assert driver.finished[2].reason is FinishReason.LENGTH, "nobody else is hurt"
    if name in contract.lacks:
        assert driver.finished[1].reason is FinishReason.ERROR
        assert driver.finished[1].error_code == UnsupportedFieldError.code
        assert name.removesuffix("_ids") in driver.finished[1].error_message
        assert not driver.tokens[1]
        return
    assert driver.finished[1].reason in (FinishReason.LENGTH, FinishReason.STOP)
    assert driver.tokens[1]
    if leaves_greedy:
        assert driver.tokens[1] == driver.tokens[2]


def test_a_bias_and_bad_words_move_what_is_drawn(contract: ContractEngine, driver: StepDriver) -> None:
    if not contract.draws or contract.lacks & {"logit_bias", "bad_words_ids"}:
        pytest.skip("it draws by no distribution")
    whole = greedy(driver, 1)
    assert greedy(driver, 2, logit_bias=((17, 100.0),)) == [17] * _NUM_TOKENS
    barred = greedy(driver, 3, bad_words_ids=((whole[0],),))
    assert whole[0] not in barred


def test_the_same_seed_draws_the_same_and_another_another(
    contract: ContractEngine, driver: StepDriver
) -> None:
    for number, seed in enumerate((7, 7, 8)):
        driver.submit(number, _PROMPT, temperature=2.0, seed=seed, max_tokens=40)
    driver.submit(3, _PROMPT, temperature=2.0, seed=7, choice=1, max_tokens=40)
    driver.run()
    assert driver.tokens[0] == driver.tokens[1]
    if contract.draws:
        assert driver.tokens[0] != driver.tokens[2]
        assert driver.tokens[0] != driver.tokens[3]


def test_tokens_come_in_order_and_each_sequence_ends_once(driver: StepDriver) -> None:
    alone = {}
    for number in range(6):
        driver.submit(number, [number + 3, *_PROMPT], max_tokens=5 + number)
        driver.run()
        alone[number] = driver.tokens[number]
    for number in range(6):
        driver.submit(100 + number, [number + 3, *_PROMPT], max_tokens=5 + number)
    driver.run()  # the driver asserts that nothing follows an end
    assert {number: len(tokens) for number, tokens in alone.items()} == {n: 5 + n for n in range(6)}
    assert {number: driver.tokens[100 + number] for number in range(6)} == alone


def test_an_end_has_its_reason(contract: ContractEngine, driver: StepDriver) -> None:
    whole = greedy(driver, 1)
    assert driver.finished[1].reason is FinishReason.LENGTH
    stop = whole[5]
    first = whole.index(stop)
    assert greedy(driver, 2, stop_token_ids=(stop,)) == whole[: first + 1]
    assert (driver.finished[2].reason, driver.finished[2].stop_token_id) == (FinishReason.STOP, stop)
    late = greedy(driver, 3, stop_token_ids=(stop,), min_tokens=first + 2)
    if driver.finished[3].reason is FinishReason.ERROR:
        assert "min_tokens" in driver.finished[3].error_message, "or it is refused where something ends it"
    else:
        assert len(late) > first + 1
    driver.submit(4, [5] * (contract.max_model_len - 3), max_tokens=100)
    driver.run()
    assert (driver.finished[4].reason, len(driver.tokens[4])) == (FinishReason.LENGTH, 3)


def test_what_cannot_run_ends_with_its_reason_and_hurts_nobody(
    contract: ContractEngine, driver: StepDriver
) -> None:
    driver.submit(1, [5] * contract.max_model_len)
    driver.submit(2, [])
    driver.submit(3, _PROMPT, "nobody")
    driver.submit(4, _PROMPT, max_tokens=3)
    driver.run()
    assert {number: each.error_code for number, each in driver.finished.items()} == {
        1: "context_length_exceeded",
        2: "invalid_value",
        3: REPLICA_UNLOADED,
        4: "",
    }
    assert not any(driver.tokens[number] for number in (1, 2, 3))


def test_logprobs_come_with_their_tokens(contract: ContractEngine, driver: StepDriver) -> None:
    if "logprobs" in contract.lacks:
        pytest.skip("it has no log-probabilities")
    tokens = greedy(driver, 1, logprobs=3)
    tops = driver.logprobs[1]
    assert len(tops) == len(tokens) == _NUM_TOKENS
    for token_id, top in zip(tokens, tops, strict=True):
        assert top.token_ids[0] == token_id, "greedy takes the likeliest"
        assert top.logprobs[0] == pytest.approx(top.logprob)
        assert len(top.token_ids) == len(set(top.token_ids)) == 3
        assert 0 >= top.logprobs[0] >= top.logprobs[1] >= top.logprobs[2]
    assert greedy(driver, 2) == tokens
    assert not driver.logprobs.get(2)


def test_prompt_logprobs_are_of_every_token_but_the_first(
    contract: ContractEngine, driver: StepDriver
) -> None:
    if "prompt_logprobs" in contract.lacks:
        pytest.skip("it has no log-probabilities of prompts")
    greedy(driver, 1, prompt_logprobs=2)
    found = driver.prompt_logprobs[1]
    assert len(found) == len(_PROMPT) - 1
    assert all(top.logprob <= 0 and len(top.token_ids) == 2 for top in found)


def test_a_sequence_that_comes_again_goes_on_after_what_it_has_said(driver: StepDriver) -> None:
    whole = greedy(driver, 1)
    for already in (1, 6, _NUM_TOKENS - 1):
        driver.submit(100 + already, _PROMPT, output_ids=whole[:already], max_tokens=_NUM_TOKENS)
    driver.run()
    for already in (1, 6, _NUM_TOKENS - 1):
        assert driver.tokens[100 + already] == whole[already:]


# Residency.


def test_sleep_and_wake_keep_outputs_equal(contract: ContractEngine, driver: StepDriver) -> None:
    engine = driver.engine
    before = greedy(driver, 1)
    if not contract.sleeps:
        with pytest.raises(ConflictError):
            engine.sleep("m")
        assert greedy(driver, 2) == before
        return
    held_bytes = engine.stats().replicas[0].weights_bytes
    assert engine.sleep("m") == held_bytes
    engine.settle()
    (asleep,) = engine.stats().replicas
    assert (asleep.residency, asleep.weights_bytes) == ("warm", 0)
    assert engine.wake("m", contract.weights_bytes) == held_bytes
    assert greedy(driver, 2) == before


def test_what_sleeps_goes_on_from_where_it_was(contract: ContractEngine, driver: StepDriver) -> None:
    if not contract.sleeps:
        pytest.skip("it does not sleep")
    whole = greedy(driver, 1, 40)
    driver.submit(2, _PROMPT, max_tokens=40)
    while len(driver.tokens[2]) < 5:
        driver.step()
    driver.engine.sleep("m")
    driver.engine.settle()
    driver.submit(3, _PROMPT, max_tokens=40)
    driver.submit(4, _PROMPT, max_tokens=40)
    assert not driver.engine.has_work()
    driver.engine.cancel([4])
    driver.run()
    assert driver.finished.keys() == {1, 4}
    driver.engine.wake("m", contract.weights_bytes)
    driver.run()
    assert driver.tokens[2] == driver.tokens[3] == whole


def test_what_is_unloaded_ends_its_sequences_and_comes_again(
    contract: ContractEngine, driver: StepDriver
) -> None:
    before = greedy(driver, 1)
    driver.submit(2, _PROMPT, max_tokens=100)
    while not driver.tokens[2]:
        driver.step()
    driver.engine.unload("m")
    driver.engine.unload("m")
    driver.run()
    assert driver.finished[2].error_code == REPLICA_UNLOADED
    assert not driver.engine.stats().replicas
    with pytest.raises(NotFoundError):
        driver.engine.wake("m", contract.weights_bytes)
    contract.load(driver)
    assert greedy(driver, 3) == before


def test_two_replicas_say_what_each_says_alone(contract: ContractEngine, driver: StepDriver) -> None:
    whole = greedy(driver, 1)
    contract.load(driver, "n")
    for number in range(2, 6):
        driver.submit(number, _PROMPT, "mn"[number % 2], max_tokens=_NUM_TOKENS)
    driver.run()
    assert [driver.tokens[number] for number in range(2, 6)] == [whole] * 4
    assert {each.replica_id for each in driver.engine.stats().replicas} == {"m", "n"}


# Figures.


def test_stats_add_up(driver: StepDriver) -> None:
    draw = random.Random(0)
    lengths = {number: (draw.randint(1, 30), draw.randint(1, 20)) for number in range(8)}
    for number, (num_prompt, num_output) in lengths.items():
        prompt = [draw.randint(3, 200) for _ in range(num_prompt)]
        driver.submit(number, prompt, cache_scope=None, max_tokens=num_output)
    driver.run()
    (replica,) = driver.engine.stats().replicas
    assert replica.prompt_tokens_total == sum(num_prompt for num_prompt, _ in lengths.values())
    assert replica.generation_tokens_total == sum(num_output for _, num_output in lengths.values())
    assert driver.engine.stats().steps_total > 0
    for number, (num_prompt, num_output) in lengths.items():
        # The KV of the last token is nobody's to read.
        assert num_prompt <= driver.computed_tokens[number] <= num_prompt + num_output
