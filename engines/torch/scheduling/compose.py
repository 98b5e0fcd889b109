"""Chooses what the next step computes. Every order of sequences and of models stands here.

Pure functions over small records: nothing here takes a block, changes a book or reads a clock. The scheduler
carries out what is chosen, and a simulator may ask the same functions without an engine.

Scheduling by iteration is Orca's (Yu et al., OSDI 2022); prefill chunks beside decodes under one budget of
tokens are Sarathi-Serve's (Agrawal et al., OSDI 2024).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memory_manager.policy.kv_forecast import is_earliest_of_its_priority

__all__ = [
    "AdmissionOrder",
    "FirstChunk",
    "ModelPace",
    "PreemptibleSequences",
    "RunningSequences",
    "StepPlan",
    "Turn",
    "admission_order",
    "choose_chunks",
    "claim_order",
    "cut_at_block_end",
    "first_chunks",
    "is_open_to_new",
    "least_urgent",
    "may_admit_more",
    "most_late_tokens",
    "most_unpaced_decodes",
    "order_of_turns",
    "with_admitted",
]

_LATE_PART = 8
_PACED_PART = 0.75  # of the time for a token: what steps take more than expected is not lost
_MOST_HELD_BACK = 8  # in one step: each was looked up in vain

AdmissionOrder = tuple[int, bool, bool, float, int]


@dataclass(frozen=True, slots=True)
class Turn:
    """A model of a worker that has work.

    Attributes:
        deadline_s: the earliest of its sequences that have no first token yet; ``inf`` if there is none.
        last_step: number of the worker's step that it last took; 0 if it took none.
        num_turns_waited: steps that others took since it last had a turn and had work.
    """

    replica_id: str
    deadline_s: float
    last_step: int
    num_turns_waited: int


@dataclass(frozen=True, slots=True)
class RunningSequences:
    """The sequences of one model that have a slot, as columns [S].

    Attributes:
        slots: int64.
        priority: int64, higher is more urgent.
        deadline_s: float64, for the first token; ``inf`` once it was given.
        arrival: int64, order of submission in the worker; no two are equal.
        num_tokens: int64, known tokens, of prompt and output.
        num_computed: int64, of these, the tokens whose KV is there; fewer than ``num_tokens``.
        is_late: bool, its first token came, or can only come, after its deadline.
        is_unpaced: bool, it has given tokens, and nothing is promised of those that follow, or no more since it is
            late.
    """

    slots: NDArray[np.int64]
    priority: NDArray[np.int64]
    deadline_s: NDArray[np.float64]
    arrival: NDArray[np.int64]
    num_tokens: NDArray[np.int64]
    num_computed: NDArray[np.int64]
    is_late: NDArray[np.bool_]
    is_unpaced: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.slots)


class ModelPace(NamedTuple):
    """Demands of a model's running sequences on the pace of the worker's steps.

    Attributes:
        due_s: when the first of the next tokens of its paced decodes is due; ``inf`` if it has none.
        tightest_tpot_s: the least target of these, for each token; ``inf`` if it has none.
        step_s: seconds of its step with these decodes alone.
    """

    due_s: float
    tightest_tpot_s: float
    step_s: float


@dataclass(frozen=True, slots=True)
class StepPlan:
    """How many tokens each sequence computes in a step.

    Attributes:
        slots: int64 [S], decodes first.
        num_new: int64 [S], tokens that each computes, at least 1.
        num_decodes: number of sequences, the first of them, that compute exactly one.
    """

    slots: NDArray[np.int64]
    num_new: NDArray[np.int64]
    num_decodes: int

    def __len__(self) -> int:
        return len(self.slots)

    def without(self, slots: Sequence[int]) -> StepPlan:
        stays = ~np.isin(self.slots, np.array(slots, np.int64))
        num_decodes = int(stays[: self.num_decodes].sum())
        return StepPlan(self.slots[stays], self.num_new[stays], num_decodes)

    @property
    def num_new_tokens(self) -> int:
        return int(self.num_new.sum())


class FirstChunk(NamedTuple):
    """A chunk with which a sequence may be admitted.

    Attributes:
        num_tokens: computed in its first step.
        margin_blocks: blocks of each KV group that must be left once it has its own.
    """

    num_tokens: int
    margin_blocks: int


@dataclass(frozen=True, slots=True)
class PreemptibleSequences:
    """Sequences that hold KV, of one model or of several, as columns [S].

    Attributes:
        model: int64, number of the model of each.
        slots: int64, of its model's table.
        priority: int64, higher is more urgent.
        is_late: bool, its first token came, or can only come, after its deadline.
        arrival: int64, order of submission in the worker; no two are equal.
        redo_s: float64, seconds to have again what it would lose.
        freed_bytes: float64, KV that nobody else uses.
    """

    model: NDArray[np.int64]
    slots: NDArray[np.int64]
    priority: NDArray[np.int64]
    is_late: NDArray[np.bool_]
    arrival: NDArray[np.int64]
    redo_s: NDArray[np.float64]
    freed_bytes: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.slots)

    @classmethod
    def joined(cls, models: Sequence[PreemptibleSequences]) -> PreemptibleSequences:
        """The sequences of these models, each with the model's place here as its number."""
        numbers = [np.full(len(each), number, np.int64) for number, each in enumerate(models)]
        columns = [column.name for column in fields(cls) if column.name != "model"]
        return cls(
            np.concatenate(numbers),
            *(np.concatenate([getattr(each, name) for each in models]) for name in columns),
        )


def order_of_turns(turns: Sequence[Turn], max_turns_waited: int) -> list[str]:
    """Models in the order in which they should be tried; the first that can run takes the step.

    The earliest deadline goes first, then the one that stepped least recently. Whoever has waited for
    ``max_turns_waited`` turns goes before all deadlines, longest wait first, so that of N models none waits for
    more than ``max_turns_waited + N - 1``.
    """

    def key(turn: Turn) -> tuple[int, float, int, str]:
        if turn.num_turns_waited >= max_turns_waited:
            return (-turn.num_turns_waited, 0.0, turn.last_step, turn.replica_id)
        return (0, turn.deadline_s, turn.last_step, turn.replica_id)

    return [turn.replica_id for turn in sorted(turns, key=key)]


def most_late_tokens(max_tokens: int) -> int:
    """Tokens of late prefills that are computed in a step beside others in time: a small part, as whoever comes amid
    the step waits until it ends. The late ones take longer by that, and end all the same.

    Args:
        max_tokens: computed in the step.
    """
    return max(1, max_tokens // _LATE_PART)


def most_unpaced_decodes(paces: Sequence[ModelPace], decode_s: float, now_s: float) -> float:
    """Decodes of a step that are not paced, so many that the paced ones of all models keep their targets; at least
    one, so that each of them goes on in its turn; ``inf`` if none is paced.

    A round, in which each model takes a step with its paced decodes, has to be over before the next token of any of
    them is due. What is left is for the others, in equal parts of each model. A target that
    the paced ones alone would miss holds nobody up.

    Args:
        paces: of the models with running sequences.
        decode_s: seconds of one decode more in this step.
        now_s: on the clock of the tokens that are due.
    """
    due_s = min((each.due_s for each in paces), default=math.inf)
    if due_s == math.inf:
        return math.inf
    tightest_tpot_s, round_s = min(each.tightest_tpot_s for each in paces), sum(each.step_s for each in paces)
    if round_s > tightest_tpot_s:
        return math.inf
    left_s = min(due_s - now_s, _PACED_PART * tightest_tpot_s) - round_s
    if left_s <= 0 or decode_s <= 0:
        return 1 if left_s <= 0 else math.inf
    return max(1, left_s / decode_s // len(paces))


def choose_chunks(
    running: RunningSequences,
    max_tokens: int,
    in_time_priority: float = -math.inf,
    max_unpaced: float = math.inf,
) -> StepPlan:
    """Chooses one token of every decode, and chunks of the prefills in what the budget leaves: by priority, then
    those in time, then by deadline, then by arrival.

    Args:
        max_tokens: computed in the step, at least the number of sequences.
        max_unpaced: decodes that are not paced, by ``most_unpaced_decodes``; more of them sit the step out, by
            priority and then arrival.
        in_time_priority: the highest of all sequences of the worker that are in time, ``-inf`` if none is. Late
            prefills that are not above it take ``most_late_tokens``.
    """
    slots, remaining = running.slots, running.num_tokens - running.num_computed
    decodes = slots[_decoding(running, max_unpaced)]
    prefills = np.flatnonzero(remaining > 1)
    order = np.lexsort(
        (
            running.arrival[prefills],
            running.deadline_s[prefills],
            running.is_late[prefills],
            -running.priority[prefills],
        )
    )
    prefills = prefills[order]
    remaining = remaining[prefills]
    yields = running.is_late[prefills] & (running.priority[prefills] <= in_time_priority)
    late = np.where(yields, remaining, 0)
    remaining = remaining - late + _taken(late, most_late_tokens(max_tokens))
    chunks = _taken(remaining, max_tokens - len(decodes))
    some = chunks > 0
    return StepPlan(
        np.concatenate((decodes, slots[prefills[some]])),
        np.concatenate((np.ones(len(decodes), np.int64), chunks[some])),
        len(decodes),
    )


def _decoding(running: RunningSequences, max_unpaced: float) -> NDArray[np.bool_]:
    """Which of these sequences decode in a step, bool [S]."""
    decoding: NDArray[np.bool_] = running.num_tokens - running.num_computed == 1
    unpaced = np.flatnonzero(decoding & running.is_unpaced) if max_unpaced < len(running) else ()
    if len(unpaced) > max_unpaced:
        order = np.lexsort((running.arrival[unpaced], -running.priority[unpaced]))
        decoding[unpaced[order[int(max_unpaced) :]]] = False
    return decoding


def _taken(wanted: NDArray[np.int64], budget: int) -> NDArray[np.int64]:
    """Shares of a budget, the first first, int64 [S]."""
    taken: NDArray[np.int64] = np.clip(budget - (np.cumsum(wanted) - wanted), 0, wanted)
    return taken


def cut_at_block_end(plan: StepPlan, num_computed: int, block_tokens: int) -> StepPlan:
    """Cuts the plan of a lone sequence where its smallest block ends: no chunk needs fewer blocks of a window
    group, and one sequence of full length is counted with that many."""
    return StepPlan(
        plan.slots, np.minimum(plan.num_new, block_tokens - num_computed % block_tokens), plan.num_decodes
    )


def least_urgent(sequences: PreemptibleSequences, wanted_bytes: float) -> int | None:
    """Chooses the sequence to be preempted first; None if there is none.

    Of the lowest priority it is a late one, before those in time; of these the one that is had again soonest for each
    byte that is of use; among equals the latest arrival. Seconds are the same for a large model as for a small one,
    whose tokens are not.

    The earliest arrival of a priority is spared as long as there are others with it. Whoever waits longest would
    otherwise be preempted again and again while it is still cheap, and might never end. A model's only sequence goes
    after all that have neighbours, so that as many models as can be go on. Last of all goes the earliest arrival of
    the highest priority; so there is always one that ends.

    Args:
        wanted_bytes: more than this, a sequence frees in vain.

    Returns:
        A row.
    """
    if not len(sequences):
        return None
    is_earliest = is_earliest_of_its_priority(sequences.priority, sequences.arrival)
    is_last = is_earliest & (sequences.priority == sequences.priority.max())
    _, model, num_of_model = np.unique(sequences.model, return_inverse=True, return_counts=True)
    is_only = num_of_model[model] == 1
    useful_bytes = np.minimum(sequences.freed_bytes, wanted_bytes)
    seconds_per_byte = np.full(len(sequences), np.inf)
    np.divide(sequences.redo_s, useful_bytes, out=seconds_per_byte, where=useful_bytes > 0)
    keys = (-sequences.arrival, seconds_per_byte, ~sequences.is_late, is_earliest, sequences.priority)
    return int(np.lexsort((*keys, is_only, is_last))[0])


def claim_order(priority: int, arrival: int) -> tuple[int, int]:
    """Sorts the sequences of all models of a worker; the least is the first: the earliest arrival of the highest
    priority. It can always take all KV that is guaranteed to no other model, whoever has it, so it always goes on and
    ends; then another is the first. So all end, though memory is kept for no more than one of full length."""
    return (-priority, arrival)


def admission_order(
    priority: int, is_late: bool, has_begun: bool, deadline_s: float, arrival: int
) -> AdmissionOrder:
    """Sorts those that wait; the least is admitted first: by priority; then those that can still meet their targets,
    so that under too much load some do and not everybody is late; then those that have begun, whose clients may have
    seen part of the answer; then by deadline; then by arrival.

    Args:
        is_late: its first token came, or can only come, after its deadline.
        has_begun: it was preempted, or outlived a worker.
        deadline_s: for its first token; ``inf`` once it has one.
    """
    return (-priority, is_late, not has_begun, deadline_s, arrival)


def is_open_to_new(plan: StepPlan, was_preempted: bool) -> bool:
    """Whether sequences of the queue may join a plan of the running ones. Whoever was just preempted would come
    straight back; unless that left the model with nothing to do.

    Args:
        was_preempted: a sequence lost its blocks to make room for this plan.
    """
    return not was_preempted or len(plan) == 0


def may_admit_more(budget_tokens: int, num_free_slots: int, num_held_back: int) -> bool:
    """Whether the next of the queue is looked at.

    Args:
        budget_tokens: left of the step's.
        num_held_back: sequences of the queue that were passed over in this step, because another one computes in
            it what they begin with.
    """
    return budget_tokens > 0 and num_free_slots > 0 and num_held_back < _MOST_HELD_BACK


def first_chunks(
    num_tokens: int, num_found: int, budget_tokens: int, num_running: int, block_tokens: Sequence[int]
) -> tuple[FirstChunk, ...]:
    """Chunks with which a sequence may begin; it is admitted with the first that there is room for.

    Beside others it leaves each of them a block. Alone it may also begin with as little as ends its first block,
    which there is always room for once it is the worker's first.

    Args:
        num_tokens: known tokens.
        num_found: of these, the tokens that need not be computed; fewer.
        budget_tokens: left of the step's.
        block_tokens: by KV group.
    """
    chunk = min(num_tokens - num_found, budget_tokens)
    if num_running:
        return (FirstChunk(chunk, margin_blocks=num_running),)
    shortest = min(chunk, *(size - num_found % size for size in block_tokens))
    return FirstChunk(chunk, margin_blocks=0), FirstChunk(shortest, margin_blocks=0)


def with_admitted(plan: StepPlan, slots: NDArray[np.int64], chunks: NDArray[np.int64]) -> StepPlan:
    """Joins admitted sequences to a plan; one with a chunk of a single token counts as a decode.

    Args:
        slots: int64 [N].
        chunks: int64 [N], tokens that each computes.
    """
    if not len(slots):
        return plan
    single = chunks == 1
    num = plan.num_decodes
    return StepPlan(
        np.concatenate((plan.slots[:num], slots[single], plan.slots[num:], slots[~single])),
        np.concatenate((plan.num_new[:num], chunks[single], plan.num_new[num:], chunks[~single])),
        num + int(single.sum()),
    )
