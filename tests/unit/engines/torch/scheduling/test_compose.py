"""The step policy as a module: what it needs, and examples of what it chooses."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
from support.paths import ROOT

from engines.torch.scheduling.compose import (
    FirstChunk,
    Preemptible,
    RunningSequences,
    StepPlan,
    choose_chunks,
    cut_at_block_end,
    first_chunks,
    is_open_to_new,
    least_urgent,
    may_admit_more,
    preemption_order,
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
    )


def test_decodes_come_first_and_the_most_urgent_prefill_has_the_rest() -> None:
    sequences = running((0, math.inf, 40, 0), (0, 5.0, 30, 10), (1, math.inf, 8, 0), (0, math.inf, 9, 8))
    plan = choose_chunks(sequences, max_tokens=20)
    assert plan.slots.tolist() == [13, 12, 11]
    assert plan.num_new.tolist() == [1, 8, 11]
    assert plan.num_decodes == 1


def test_a_lone_sequence_is_cut_where_its_block_ends() -> None:
    plan = choose_chunks(running((0, math.inf, 100, 37)), max_tokens=64)
    assert cut_at_block_end(plan, num_computed=37, block_tokens=16).num_new.tolist() == [11]


def test_the_earliest_of_the_lowest_priority_is_spared() -> None:
    sequences = running((0, math.inf, 9, 1), (0, math.inf, 9, 5), (0, math.inf, 9, 5), (1, math.inf, 9, 0))
    assert least_urgent(sequences, sequences.num_computed) == Preemptible(12, False, 0, 5, 2)
    alone = running((3, math.inf, 9, 4))
    assert least_urgent(alone, alone.num_computed) == Preemptible(10, True, 3, 4, 0)


def test_of_several_models_an_only_sequence_goes_last() -> None:
    only, dear, cheap = (
        Preemptible(0, True, 0, 1, 1),
        Preemptible(1, False, 0, 9, 2),
        Preemptible(2, False, 0, 3, 3),
    )
    urgent, late = Preemptible(3, False, 1, 0, 4), Preemptible(4, False, 0, 3, 5)
    expected = [late, cheap, dear, urgent, only]
    assert sorted([only, dear, cheap, urgent, late], key=preemption_order) == expected


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
