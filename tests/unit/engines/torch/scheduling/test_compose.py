"""The step policy as a module: what it needs, and examples of what it chooses."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from support.paths import ROOT

from engines.torch.scheduling.compose import (
    FirstChunk,
    ModelPace,
    PreemptibleSequences,
    RunningSequences,
    StepPlan,
    choose_chunks,
    cut_at_block_end,
    first_chunks,
    is_open_to_new,
    least_urgent,
    may_admit_more,
    most_late_tokens,
    most_unpaced_decodes,
    with_admitted,
)

_IMPORT_ALONE = """
import sys
for name in ("torch", "asyncio", "threading", "grpc"):
    sys.modules[name] = None
import engines.torch.scheduling.compose as compose
assert compose.choose_chunks
"""


def test_it_is_imported_without_torch_event_loop_and_threads() -> None:
    # numpy has a use for threads: it is there before they are forbidden.
    code = "import numpy\n" + _IMPORT_ALONE
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def running(*rows: tuple[int, float, int, int]) -> RunningSequences:
    """Sequences by priority, deadline, known and computed tokens, in the order of their arrival."""
    priority, deadline_s, num_tokens, num_computed = zip(*rows, strict=True)
    return RunningSequences(
        slots=np.arange(10, 10 + len(rows)),
        priority=np.array(priority, np.int64),
        deadline_s=np.array(deadline_s, np.float64),
        arrival=np.arange(len(rows)),
        num_tokens=np.array(num_tokens, np.int64),
        num_computed=np.array(num_computed, np.int64),
        is_late=np.zeros(len(rows), np.bool_),
        is_unpaced=np.ones(len(rows), np.bool_),
    )


@pytest.mark.parametrize(
    ("paces", "now_s", "most"),
    [
        ([], 0.0, math.inf),
        ([ModelPace(math.inf, math.inf, 0.01)], 0.0, math.inf),
        ([ModelPace(10.0, 0.1, 0.025)], 0.0, 50),  # three quarters of the target, less the step
        ([ModelPace(10.0, 0.1, 0.025)], 9.955, 20),  # the token is due in 45 ms
        ([ModelPace(10.0, 0.1, 0.025)], 10.5, 1),  # it is overdue
        (
            [ModelPace(10.0, 0.1, 0.02), ModelPace(math.inf, math.inf, 0.015)],
            0.0,
            20,
        ),  # for each of two models
    ],
)
def test_unpaced_decodes_have_what_the_paced_ones_leave(
    paces: list[ModelPace], now_s: float, most: float
) -> None:
    assert most_unpaced_decodes(paces, 0.000999, now_s) == most


@pytest.mark.parametrize(("now_s", "most"), [(0.0, math.inf), (10.5, 1)])
def test_decodes_that_cost_nothing_are_not_counted(now_s: float, most: float) -> None:
    assert most_unpaced_decodes([ModelPace(10.0, 0.1, 0.02)], 0.0, now_s) == most


def test_decodes_come_first_and_the_most_urgent_prefill_has_the_rest() -> None:
    sequences = running((0, math.inf, 40, 0), (0, 5.0, 30, 10), (1, math.inf, 8, 0), (0, math.inf, 9, 8))
    plan = choose_chunks(sequences, max_tokens=20)
    assert plan.slots.tolist() == [13, 12, 11]
    assert plan.num_new.tolist() == [1, 8, 11]
    assert plan.num_decodes == 1


def test_late_prefills_go_last_and_compute_little_while_others_are_in_time() -> None:
    sequences = running((0, math.inf, 40, 0), (0, 5.0, 30, 0), (0, math.inf, 50, 0), (0, math.inf, 9, 8))
    sequences = replace(sequences, is_late=np.array([True, False, False, True]))
    most = most_late_tokens(128)
    plan = choose_chunks(sequences, 128, in_time_priority=0)
    assert plan.slots.tolist() == [13, 11, 12, 10]
    assert plan.num_new.tolist() == [1, 30, 50, most]
    assert most < 40
    assert choose_chunks(sequences, 128, in_time_priority=-1).num_new.tolist() == [1, 30, 50, 40]


def test_a_lone_sequence_is_cut_where_its_block_ends() -> None:
    plan = choose_chunks(running((0, math.inf, 100, 37)), 64)
    assert cut_at_block_end(plan, num_computed=37, block_tokens=16).num_new.tolist() == [11]


def preemptible(*rows: tuple[int, int, bool, float, float]) -> PreemptibleSequences:
    """Sequences by model, priority, lateness, seconds to redo and bytes freed, in the order of their arrival."""
    model, priority, is_late, redo_s, freed_bytes = zip(*rows, strict=True)
    return PreemptibleSequences(
        model=np.array(model, np.int64),
        slots=np.arange(10, 10 + len(rows)),
        priority=np.array(priority, np.int64),
        is_late=np.array(is_late, np.bool_),
        arrival=np.arange(len(rows)),
        redo_s=np.array(redo_s, np.float64),
        freed_bytes=np.array(freed_bytes, np.float64),
    )


def order(sequences: PreemptibleSequences, wanted_bytes: float = math.inf) -> list[int]:
    """Rows in the order in which they are preempted, one after the other."""
    rows = np.arange(len(sequences))
    chosen = []
    while (row := least_urgent(sequences, wanted_bytes)) is not None:
        chosen.append(int(rows[row]))
        rows = np.delete(rows, row)
        names = PreemptibleSequences.__slots__
        sequences = PreemptibleSequences(*(np.delete(getattr(sequences, name), row) for name in names))
    return chosen


def test_the_earliest_of_a_priority_is_spared_as_long_as_there_are_others_with_it() -> None:
    sequences = preemptible(
        (0, 0, False, 1, 8), (0, 0, False, 5, 8), (0, 0, False, 5, 8), (0, 1, False, 0, 8)
    )
    assert order(sequences) == [2, 1, 0, 3]


def test_a_large_models_tokens_cost_more_than_twice_as_many_of_a_small_one() -> None:
    """100 tokens at 70 ms each go after 200 tokens at 1 ms each, of as many bytes."""
    large, small = (0, 0, False, 100 * 70e-3, 2e6), (1, 0, False, 200 * 1e-3, 2e6)
    assert order(preemptible(small, large, large, small, small)) == [4, 3, 2, 1, 0]


def test_seconds_count_for_each_byte_that_is_of_use() -> None:
    first, dear, cheap = (0, 0, False, 1, 1), (0, 0, False, 3, 300), (0, 0, False, 2, 100)
    assert order(preemptible(first, dear, cheap), wanted_bytes=1000) == [1, 2, 0]
    assert order(preemptible(first, dear, cheap), wanted_bytes=50) == [2, 1, 0]


def test_who_frees_nothing_goes_after_who_does() -> None:
    first, nothing, something = (0, 0, False, 1, 1), (0, 0, False, 0, 0), (0, 0, False, 9, 1)
    assert order(preemptible(first, something, nothing)) == [1, 2, 0]


def test_late_ones_go_before_those_in_time_and_after_lower_priorities() -> None:
    rows = (0, 0, False, 1, 1), (0, 0, False, 1, 1), (0, 0, True, 9, 1), (0, -1, False, 9, 1)
    assert order(preemptible(*rows)) == [3, 2, 1, 0]


def test_a_models_only_sequence_goes_after_neighbours_and_the_first_of_the_highest_priority_last() -> None:
    first, only = (0, 1, False, 1, 1), (1, 0, False, 0, 1)
    assert order(preemptible(first, only, (0, 1, False, 9, 1), (0, 2, False, 9, 1))) == [2, 0, 1, 3]


def test_new_sequences_wait_while_one_was_preempted_and_others_run() -> None:
    nothing = StepPlan(np.empty(0, np.int64), np.empty(0, np.int64), 0)
    something = StepPlan(np.array([1]), np.array([1]), 1)
    assert is_open_to_new(something, was_preempted=False)
    assert not is_open_to_new(something, was_preempted=True)
    assert is_open_to_new(nothing, was_preempted=True)


def test_admission_ends_with_the_budget_the_slots_and_what_was_looked_up_in_vain() -> None:
    assert may_admit_more(budget_tokens=1, num_free_slots=1, num_held_back=7)
    assert not may_admit_more(budget_tokens=0, num_free_slots=1, num_held_back=0)
    assert not may_admit_more(budget_tokens=1, num_free_slots=0, num_held_back=0)
    assert not may_admit_more(budget_tokens=1, num_free_slots=1, num_held_back=8)


def test_who_begins_alone_may_begin_with_less() -> None:
    assert first_chunks(100, 10, 64, num_running=3, block_tokens=(16, 32)) == (FirstChunk(64, 3),)
    assert first_chunks(100, 10, 64, num_running=0, block_tokens=(16, 32)) == (
        FirstChunk(64, 0),
        FirstChunk(6, 0),
    )


def test_a_prompt_of_one_token_joins_the_decodes() -> None:
    plan = StepPlan(np.array([5, 6]), np.array([1, 30]), 1)
    joined = with_admitted(plan, np.array([7, 8]), np.array([12, 1]))
    assert (joined.slots.tolist(), joined.num_new.tolist(), joined.num_decodes) == (
        [5, 8, 6, 7],
        [1, 1, 30, 12],
        2,
    )
