"""Sequences with a target for their further tokens, in the table and in the torch engine."""

from __future__ import annotations

import math

import numpy as np
import pytest
from support.torch_engines import engine_driver, tiny_model

from engines.api import SamplingParams, SequenceRequest, run_step
from engines.torch.scheduling.sequences import SequenceTable
from engines.torch.scheduling.waiting import PendingSequence

NUM_TOKENS = 12


def pending(target_s: float, deadline_s: float = math.inf, num_output: int = 0) -> PendingSequence:
    prompt, output = np.array([1, 2], np.int32), np.arange(num_output, dtype=np.int32)
    request = SequenceRequest(1, "m", prompt, SamplingParams(), output, deadline_s, tpot_target_s=target_s)
    return PendingSequence(request, np.concatenate((prompt, output)), 1, deadline_s=deadline_s)


def given(table: SequenceTable, slot: int, now_s: float) -> None:
    """Computes what is known of a sequence and gives it a token."""
    table.num_computed[slot] = table.num_tokens[slot]
    table.append(np.array([slot]), np.array([3]), now_s)


def test_each_token_moves_when_the_next_is_due_by_the_target() -> None:
    table = SequenceTable(2, 64)
    slot = table.insert(pending(0.5), ())
    assert table.paced_decodes() == (0, math.inf, math.inf)
    given(table, slot, 10.0)
    assert table.paced_decodes() == (1, 10.5, 0.5)
    given(table, slot, 10.1)
    assert table.paced_decodes() == (1, 11.0, 0.5)
    assert not table.running().is_unpaced[0]


def test_a_preempted_one_goes_on_with_its_pace() -> None:
    table = SequenceTable(2, 64)
    slot = table.insert(pending(0.5), ())
    given(table, slot, 10.0)
    slot = table.insert(table.remove(slot), ())
    assert table.paced_decodes() == (0, math.inf, math.inf), "it does not decode"
    given(table, slot, 13.0)
    assert table.paced_decodes() == (1, 11.0, 0.5)


@pytest.mark.parametrize("target_s", [0.5, math.inf])
def test_one_whose_first_token_is_late_is_not_paced_nor_one_without_a_target(target_s: float) -> None:
    table = SequenceTable(2, 64)
    slot = table.insert(pending(target_s, deadline_s=9.0), ())
    if target_s < math.inf:
        table.note_late(10.0)
    assert not table.running().is_unpaced[0], "it has no first token yet"
    given(table, slot, 10.0)
    assert table.paced_decodes() == (0, math.inf, math.inf)
    assert table.running().is_unpaced[0]
    slot = table.insert(table.remove(slot), ())
    given(table, slot, 11.0)
    assert table.paced_decodes() == (0, math.inf, math.inf)


def test_one_that_outlived_a_worker_is_paced_from_its_next_token_on() -> None:
    table = SequenceTable(2, 64)
    slot = table.insert(pending(0.5, num_output=5), ())
    assert table.running().is_unpaced[0]
    given(table, slot, 20.0)
    assert table.paced_decodes() == (1, 20.5, 0.5)


def test_a_target_that_nobody_could_keep_holds_nobody_up() -> None:
    """All others go on beside one whose target is a nanosecond, each in every step of its model."""
    model = tiny_model("llama")
    prompts = {number: [3 + number, 5, 7, 11] for number in range(9)}
    with engine_driver(max_running_sequences=16) as driver:
        for replica_id in "ab":
            driver.load(model, replica_id)
        for number, prompt in prompts.items():
            target_s = 1e-9 if number == 0 else math.inf
            replica_id = "ab"[number % 2]
            driver.submit(number, prompt, replica_id, tpot_target_s=target_s, max_tokens=NUM_TOKENS)
        found: dict[int, list[int]] = {number: [] for number in prompts}
        while driver.engine.has_work():
            is_behind = 0 < len(found[0]) < NUM_TOKENS
            began = {number for number in prompts if found[number]}
            for output in run_step(driver.engine):
                if is_behind:
                    its = {number for number in began if "ab"[number % 2] == output.replica_id}
                    assert {number for number in its if len(found[number]) < NUM_TOKENS} <= set(
                        output.sequence_ids
                    )
                for number, token_id in zip(output.sequence_ids, output.token_ids, strict=True):
                    found[number].append(token_id)
        assert found == {number: model.generate(prompt, NUM_TOKENS) for number, prompt in prompts.items()}
