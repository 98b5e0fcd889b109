"""The rules of docs/design.md on who computes, who is admitted and who is preempted, for any sequences.

All columns are read-only, so that a function which changes what it is given fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from engines.torch.scheduling.compose import (
    PreemptibleSequences,
    RunningSequences,
    Turn,
    admission_order,
    choose_chunks,
    cut_at_block_end,
    first_chunks,
    least_urgent,
    most_late_tokens,
    order_of_turns,
    with_admitted,
)

MAX_SEQUENCES = 12

deadlines = st.sampled_from([1.0, 2.0, 3.0, math.inf])
priorities = st.integers(-1, 1)


def column(values: list[Any], dtype: type = np.int64) -> NDArray[Any]:
    array = np.array(values, dtype)
    array.flags.writeable = False
    return array


@st.composite
def sequences(draw: Callable[..., Any], min_size: int = 0) -> RunningSequences:
    num = draw(st.integers(min_size, MAX_SEQUENCES))
    computed = draw(st.lists(st.integers(0, 40), min_size=num, max_size=num))
    remaining = draw(st.lists(st.one_of(st.just(1), st.integers(1, 60)), min_size=num, max_size=num))
    return RunningSequences(
        slots=column(draw(st.permutations(range(num)))),
        priority=column(draw(st.lists(priorities, min_size=num, max_size=num))),
        deadline_s=column(draw(st.lists(deadlines, min_size=num, max_size=num)), np.float64),
        arrival=column(draw(st.permutations(range(100, 100 + num)))),
        num_tokens=column([a + b for a, b in zip(computed, remaining, strict=True)]),
        num_computed=column(computed),
        is_late=column(draw(st.lists(st.booleans(), min_size=num, max_size=num)), np.bool_),
        is_unpaced=column(draw(st.lists(st.booleans(), min_size=num, max_size=num)), np.bool_),
    )


def rows_of(running: RunningSequences) -> list[dict[str, Any]]:
    """The columns, sequence by sequence."""
    return [
        {
            "slot": int(running.slots[row]),
            "priority": int(running.priority[row]),
            "deadline_s": float(running.deadline_s[row]),
            "arrival": int(running.arrival[row]),
            "num_computed": int(running.num_computed[row]),
            "remaining": int(running.num_tokens[row] - running.num_computed[row]),
            "is_late": bool(running.is_late[row]),
            "is_unpaced": bool(running.is_unpaced[row]),
        }
        for row in range(len(running))
    ]


@given(
    sequences(),
    st.integers(MAX_SEQUENCES, 200),
    priorities | st.just(-math.inf),
    st.integers(1, MAX_SEQUENCES) | st.just(math.inf),
)
def test_every_decode_that_may_computes_and_prefills_share_what_is_left_by_their_order(
    running: RunningSequences, max_tokens: int, in_time_priority: float, max_unpaced: float
) -> None:
    plan = choose_chunks(running, max_tokens, in_time_priority, max_unpaced)
    rows = rows_of(running)
    unpaced = [row for row in rows if row["remaining"] == 1 and row["is_unpaced"]]
    unpaced.sort(key=lambda row: (-row["priority"], row["arrival"]))
    sitting_out = {row["slot"] for number, row in enumerate(unpaced) if number >= max_unpaced}
    decodes = {row["slot"] for row in rows if row["remaining"] == 1} - sitting_out
    assert set(plan.slots[: plan.num_decodes].tolist()) == decodes
    assert (plan.num_new[: plan.num_decodes] == 1).all()
    assert (plan.num_new >= 1).all()
    expected, budget, late_budget = [], max_tokens - len(decodes), most_late_tokens(max_tokens)
    prefills = [row for row in rows if row["remaining"] > 1]
    order = ("is_late", "deadline_s", "arrival")
    for row in sorted(prefills, key=lambda row: (-row["priority"], *(row[each] for each in order))):
        yields = row["is_late"] and row["priority"] <= in_time_priority
        chunk = min(budget, row["remaining"], late_budget if yields else budget)
        budget -= chunk
        late_budget -= chunk if yields else 0
        if chunk:
            expected.append((row["slot"], chunk))
    found = zip(
        plan.slots[plan.num_decodes :].tolist(), plan.num_new[plan.num_decodes :].tolist(), strict=True
    )
    assert list(found) == expected
    if not any(row["is_late"] for row in prefills):
        wanted = sum(row["remaining"] for row in rows if row["slot"] not in sitting_out)
        assert plan.num_new_tokens == min(max_tokens, wanted)


seconds = st.sampled_from([0.0, 0.5, 1.0, 2.0])
sizes = st.sampled_from([0.0, 1.0, 2.0, 4.0])


@st.composite
def preemptibles(draw: Callable[..., Any], min_size: int = 1) -> PreemptibleSequences:
    num = draw(st.integers(min_size, MAX_SEQUENCES))

    def draws(each: st.SearchStrategy[Any], dtype: type = np.int64) -> NDArray[Any]:
        return column(draw(st.lists(each, min_size=num, max_size=num)), dtype)

    return PreemptibleSequences(
        model=draws(st.integers(0, 3)),
        slots=draws(st.integers(0, 9)),
        priority=draws(priorities),
        is_late=draws(st.booleans(), np.bool_),
        arrival=column(draw(st.permutations(range(100, 100 + num)))),
        redo_s=draws(seconds, np.float64),
        freed_bytes=draws(sizes, np.float64),
    )


def without(sequences: PreemptibleSequences, row: int) -> PreemptibleSequences:
    names = PreemptibleSequences.__slots__
    return PreemptibleSequences(*(np.delete(getattr(sequences, name), row) for name in names))


@given(preemptibles(), sizes)
def test_preempted_first_is_who_is_had_again_soonest_of_those_that_may_go(
    sequences: PreemptibleSequences, wanted_bytes: float
) -> None:
    chosen = least_urgent(sequences, wanted_bytes)
    assert chosen is not None
    rows = [
        {name: getattr(sequences, name)[row] for name in PreemptibleSequences.__slots__}
        for row in range(len(sequences))
    ]
    first = rows[chosen]
    last = min(rows, key=lambda row: (-row["priority"], row["arrival"]))
    rivals = [row for row in rows if row is not last] or rows
    models = [row["model"] for row in rows]
    assert first in rivals
    neighbours = [row for row in rivals if models.count(row["model"]) > 1]
    rivals = neighbours or rivals
    assert first in rivals
    rivals = [row for row in rivals if row["priority"] == min(row["priority"] for row in rivals)]
    earliest = min(row["arrival"] for row in rows if row["priority"] == rivals[0]["priority"])
    rivals = [row for row in rivals if row["arrival"] != earliest] or rivals
    rivals = [row for row in rivals if row["is_late"]] or rivals

    def cost(row: dict[str, Any]) -> float:
        useful_bytes = min(row["freed_bytes"], wanted_bytes)
        return row["redo_s"] / useful_bytes if useful_bytes else math.inf

    expected = min(rivals, key=lambda row: (cost(row), -row["arrival"]))
    assert first["arrival"] == expected["arrival"]


@given(preemptibles(), sizes)
def test_preempting_one_after_the_other_ends_with_the_earliest_of_the_highest_priority(
    sequences: PreemptibleSequences, wanted_bytes: float
) -> None:
    top = sequences.arrival[sequences.priority == sequences.priority.max()].min()
    while len(sequences) > 1:
        chosen = least_urgent(sequences, wanted_bytes)
        assert chosen is not None
        sequences = without(sequences, chosen)
    assert sequences.arrival[0] == top


@given(st.lists(preemptibles(min_size=0), min_size=1, max_size=3))
def test_joined_models_keep_their_columns_and_are_numbered(models: list[PreemptibleSequences]) -> None:
    joined = PreemptibleSequences.joined(models)
    assert len(joined) == sum(len(each) for each in models)
    for number, each in enumerate(models):
        rows = joined.model == number
        for name in PreemptibleSequences.__slots__[1:]:
            assert (getattr(joined, name)[rows] == getattr(each, name)).all()


def test_with_nothing_running_nothing_is_preempted_or_computed() -> None:
    nobody = PreemptibleSequences(*(column([]) for _ in PreemptibleSequences.__slots__))
    assert least_urgent(nobody, 1.0) is None
    none = column([])
    no, nothing = column([], np.bool_), column([], np.float64)
    running = RunningSequences(none, none, nothing, none, none, none, no, no)
    assert len(choose_chunks(running, 8)) == 0


waiting = st.tuples(priorities, st.booleans(), st.booleans(), deadlines, st.integers(0, 99))


@given(st.lists(waiting, min_size=1, unique_by=lambda each: each[4]))
def test_admitted_first_are_the_highest_priority_then_who_is_in_time_then_who_has_begun_then_the_earliest(
    queue: list[tuple[int, bool, bool, float, int]],
) -> None:
    priority, is_late, has_begun, deadline_s, arrival = min(queue, key=lambda each: admission_order(*each))
    assert priority == max(each[0] for each in queue)
    rivals = [each for each in queue if each[0] == priority]
    assert is_late == all(each[1] for each in rivals)
    rivals = [each for each in rivals if each[1] == is_late]
    assert has_begun == any(each[2] for each in rivals)
    rivals = [each for each in rivals if each[2] == has_begun]
    assert deadline_s == min(each[3] for each in rivals)
    assert arrival == min(each[4] for each in rivals if each[3] == deadline_s)


@given(
    num_tokens=st.integers(1, 300),
    found=st.floats(0, 1, exclude_max=True),
    budget=st.integers(1, 128),
    num_running=st.integers(0, 5),
    block_tokens=st.lists(st.sampled_from([4, 16, 64]), min_size=1, max_size=3),
)
def test_first_chunks_fit_the_budget_and_leave_a_block_to_each_that_runs(
    num_tokens: int, found: float, budget: int, num_running: int, block_tokens: list[int]
) -> None:
    num_found = int(num_tokens * found)
    chunks = first_chunks(num_tokens, num_found, budget, num_running, block_tokens)
    assert chunks[0].num_tokens == min(budget, num_tokens - num_found)
    assert all(1 <= chunk.num_tokens <= chunks[0].num_tokens for chunk in chunks)
    assert all(chunk.margin_blocks == num_running for chunk in chunks)
    if not num_running:
        for size in block_tokens:
            assert (num_found + chunks[-1].num_tokens - 1) // size == num_found // size, "one block is enough"


@given(sequences(), st.lists(st.integers(1, 40), max_size=6))
def test_joined_plans_keep_every_sequence_and_their_decodes_first(
    running: RunningSequences, chunks: list[int]
) -> None:
    plan = choose_chunks(running, 100)
    slots = column(list(range(100, 100 + len(chunks))))
    joined = with_admitted(plan, slots, column(chunks))
    before = dict(zip(plan.slots.tolist(), plan.num_new.tolist(), strict=True))
    added = dict(zip(slots.tolist(), chunks, strict=True))
    assert dict(zip(joined.slots.tolist(), joined.num_new.tolist(), strict=True)) == before | added
    assert (joined.num_new[: joined.num_decodes] == 1).all()
    assert joined.num_decodes == plan.num_decodes + chunks.count(1)


@given(sequences(min_size=1), st.sampled_from([4, 16, 64]))
def test_a_cut_plan_ends_in_the_block_that_it_begins_in(running: RunningSequences, block_tokens: int) -> None:
    alone = RunningSequences(*(getattr(running, name)[:1] for name in RunningSequences.__slots__))
    num_computed = int(alone.num_computed[0])
    plan = choose_chunks(alone, 64)
    cut = cut_at_block_end(plan, num_computed, block_tokens)
    assert 1 <= cut.num_new[0] <= plan.num_new[0]
    assert (num_computed + int(cut.num_new[0]) - 1) // block_tokens == num_computed // block_tokens


@given(st.lists(st.tuples(deadlines, st.integers(0, 3)), min_size=1, max_size=6), st.integers(1, 6))
def test_no_model_waits_for_more_turns_than_the_bound(
    models: list[tuple[float, int]], max_waited: int
) -> None:
    last_step, waited = [0] * len(models), [0] * len(models)
    for step in range(1, 40):
        turns = [
            Turn(str(i), deadline_s if step % (phase + 1) == 0 else math.inf, last_step[i], waited[i])
            for i, (deadline_s, phase) in enumerate(models)
        ]
        order = order_of_turns(turns, max_waited)
        assert sorted(order) == sorted(turn.replica_id for turn in turns)
        first = int(order[0])
        if waited[first] < max_waited:
            assert turns[first].deadline_s == min(turn.deadline_s for turn in turns)
        waited = [number + 1 for number in waited]
        last_step[first], waited[first] = step, 0
        assert max(waited) <= max_waited + len(models) - 1
