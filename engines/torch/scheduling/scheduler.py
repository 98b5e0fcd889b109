"""What one model computes in its next step: iteration-level continuous batching with chunked prefill.

Scheduling by iteration is Orca's (Yu et al., OSDI 2022); prefill chunks beside decodes under one budget of
tokens are Sarathi-Serve's (Agrawal et al., OSDI 2024). A step is planned in this order:

1. every running decode, one token each;
2. chunks of the running prefills in what the budget leaves, the most urgent first;
3. blocks for both; where there is no room, the least urgent sequence is preempted and 1 is done again;
4. new sequences from the queue, as long as budget, slots and blocks last. One that begins as another does whose
   prefill is in this step (the choices of one request) waits for the next, and finds what that one computed.

A preempted sequence loses its blocks and keeps its tokens. When it is readmitted it computes those again whose
KV is neither stored still nor in host memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines.torch.kv.block_tables import BlockTables
from engines.torch.kv.prefix import Prefix
from engines.torch.scheduling.sequences import SequenceTable
from engines.torch.scheduling.waiting import PendingSequence, WaitingQueue

__all__ = ["Scheduler", "StepPlan"]

_MOST_HELD_BACK = 8  # in one step: each was looked up in vain


@dataclass(slots=True)
class StepPlan:
    """Which sequences compute how many tokens.

    Attributes:
        slots: int64 [S], decodes first.
        num_new: int64 [S], tokens that each computes, at least 1.
        num_decodes: how many of the first have exactly one.
    """

    slots: NDArray[np.int64]
    num_new: NDArray[np.int64]
    num_decodes: int

    @property
    def num_new_tokens(self) -> int:
        return int(self.num_new.sum())


class _Refusal(NamedTuple):
    """There was no room for this sequence, and as long as the rest stays there is none."""

    pending: PendingSequence
    revision: int
    num_running: int


class Scheduler:
    """Plans the steps of one model over its table, its blocks and its queue.

    Args:
        max_tokens_per_step: at least the number of slots.
        find: what of a waiting sequence need not be computed, claimed.
        admit: gives a sequence, no longer in the queue, a slot of the table, and what was found for it; returns
            the slot.
        preempt: takes the sequence of a slot out of table and blocks and back into the queue.
        ended_for_good: given the slot of a sequence that runs alone and whose next block does not fit, ends
            it if no lease could make room and says so; else it is preempted and waits for a larger lease.
    """

    def __init__(
        self,
        table: SequenceTable,
        blocks: BlockTables,
        waiting: WaitingQueue,
        *,
        max_tokens_per_step: int,
        find: Callable[[PendingSequence], Prefix],
        admit: Callable[[PendingSequence, Prefix], int],
        preempt: Callable[[int], None],
        ended_for_good: Callable[[int], bool],
    ) -> None:
        self._table = table
        self._blocks = blocks
        self._waiting = waiting
        self._max_tokens = max_tokens_per_step
        self._find = find
        self._admit = admit
        self._preempt = preempt
        self._ended_for_good = ended_for_good
        self._refused: _Refusal | None = None

    @property
    def is_short_of_kv(self) -> bool:
        """Whether the next of the queue has found no room so far."""
        return self._refused is not None and self._refused.pending is self._waiting.peek()

    def plan(self) -> StepPlan | None:
        """The next step, its blocks taken; None when nothing can run now."""
        plan, was_preempted = self._plan_running()
        # What was just preempted would come straight back; unless it left the model with nothing to do.
        if len(plan.slots) == 0 or not was_preempted:
            plan = self._with_admitted(plan)
        return plan if len(plan.slots) else None

    def least_urgent(self) -> tuple[int, int]:
        """The slot to be preempted first, and the tokens that would be computed again: of the lowest priority the
        one that is cheapest to redo, which has computed the fewest tokens that nobody else keeps; then the latest
        arrival.

        The earliest arrival of a priority is spared as long as others run with it. Whoever waits longest would
        otherwise be preempted again and again while it is still cheap, and might never end; so it always does.
        """
        table = self._table
        slots = table.active_slots()
        slots = slots[table.priority[slots] == table.priority[slots].min()]
        if len(slots) > 1:
            slots = np.delete(slots, table.arrival[slots].argmin())
        costs = self._blocks.num_unshared_tokens(slots, table.num_computed[slots])
        first = np.lexsort((-table.arrival[slots], costs))[0]
        return int(slots[first]), int(costs[first])

    def _plan_running(self) -> tuple[StepPlan, bool]:
        was_preempted = False
        while True:
            plan = self._chunks_of_running()
            if self._extend(plan):
                return plan, was_preempted
            if len(self._table) == 1:
                shorter = self._up_to_block_end(plan)
                if self._extend(shorter):
                    return shorter, was_preempted
                if self._ended_for_good(int(plan.slots[0])):
                    continue
            was_preempted = True
            self._preempt(self.least_urgent()[0])

    def _chunks_of_running(self) -> StepPlan:
        table = self._table
        slots = table.active_slots()
        remaining = table.num_tokens[slots] - table.num_computed[slots]
        decodes = slots[remaining == 1]
        prefills, remaining = slots[remaining > 1], remaining[remaining > 1]
        order = np.lexsort((table.arrival[prefills], table.deadline_s[prefills], -table.priority[prefills]))
        prefills, remaining = prefills[order], remaining[order]
        budget = self._max_tokens - len(decodes)
        chunks = np.clip(budget - (np.cumsum(remaining) - remaining), 0, remaining)
        some = chunks > 0
        return StepPlan(
            np.concatenate((decodes, prefills[some])),
            np.concatenate((np.ones(len(decodes), np.int64), chunks[some])),
            len(decodes),
        )

    def _extend(self, plan: StepPlan) -> bool:
        computed = self._table.num_computed[plan.slots]
        return self._blocks.extend(plan.slots, self._table.num_tokens[plan.slots], computed + plan.num_new)

    def _up_to_block_end(self, plan: StepPlan) -> StepPlan:
        """The plan of a lone sequence, cut where its smallest block ends: no chunk needs fewer blocks of a
        window group, and the guarantee covers that many."""
        computed = int(self._table.num_computed[plan.slots[0]])
        block_tokens = min(group.block_tokens for group in self._blocks.groups)
        to_block_end = block_tokens - computed % block_tokens
        return StepPlan(plan.slots, np.minimum(plan.num_new, to_block_end), plan.num_decodes)

    def _with_admitted(self, plan: StepPlan) -> StepPlan:
        budget = self._max_tokens - plan.num_new_tokens
        slots: list[int] = []
        chunks: list[int] = []
        held_back: list[PendingSequence] = []
        coming = self._keys_coming_of(plan) if len(self._waiting) else set()
        while budget > 0 and self._table.has_free_slot and len(held_back) < _MOST_HELD_BACK:
            pending = self._waiting.peek()
            if pending is None or self._refused == self._refusal(pending):
                break
            prefix = self._find(pending)
            if self._next_key(pending, prefix) in coming:
                self._blocks.unclaim(prefix)
                held_back.append(self._waiting.remove(pending.request.sequence_id))
                continue
            chunk = self._admit_next(pending, prefix, budget)
            if chunk is None:
                break
            slot, num_new = chunk
            slots.append(slot)
            chunks.append(num_new)
            coming.update(self._keys_coming(slot, num_new))
            budget -= num_new
        for pending in held_back:
            self._waiting.push(pending)
        return _joined(plan, np.array(slots, np.int64), np.array(chunks, np.int64))

    def _keys_coming_of(self, plan: StepPlan) -> set[bytes]:
        prefills = zip(
            plan.slots[plan.num_decodes :].tolist(), plan.num_new[plan.num_decodes :].tolist(), strict=True
        )
        return {key for slot, num_new in prefills for key in self._keys_coming(slot, num_new)}

    def _keys_coming(self, slot: int, num_new: int) -> list[bytes]:
        """Of the first group's blocks that a sequence has filled after this step and shares."""
        keys = self._table.keys_of(slot)
        if keys is None:
            return []
        computed, size = int(self._table.num_computed[slot]), self._blocks.groups[0].block_tokens
        return keys.keys(0, self._table.token_ids[slot], computed // size, (computed + num_new) // size)

    def _next_key(self, pending: PendingSequence, prefix: Prefix) -> bytes | None:
        """Of the first group's first block after the prefix; None where it would have to be computed anyway."""
        size = self._blocks.groups[0].block_tokens
        column = prefix.num_tokens // size
        if pending.keys is None or (column + 1) * size > pending.max_prefix_tokens:
            return None
        return pending.keys.keys(0, pending.token_ids, column, column + 1)[0]

    def _admit_next(self, pending: PendingSequence, prefix: Prefix, budget: int) -> tuple[int, int] | None:
        """Slot and first chunk of the next in the queue; None where there is no room for it.

        Args:
            prefix: what was found for it, claimed.
        """
        chunk = self._first_chunk(pending, prefix, budget)
        if chunk is None and not len(self._table):
            # What was found may lie on more pages than the guarantee covers; one that runs alone fits without it.
            self._blocks.unclaim(prefix)
            prefix = Prefix.empty(self._blocks.groups)
            chunk = self._first_chunk(pending, prefix, budget)
        num_tokens = len(pending.token_ids)
        if chunk is None or not self._blocks.prepare(prefix, num_tokens, prefix.num_tokens + chunk):
            self._blocks.unclaim(prefix)
            # Where the device has less memory than the lease says, nothing here tells when it has more.
            self._refused = self._refusal(pending) if chunk is None else None
            return None
        self._waiting.remove(pending.request.sequence_id)
        slot = self._admit(pending, prefix)
        if not self._extend(StepPlan(np.array([slot]), np.array([chunk]), 0)):
            self._preempt(slot)  # the device has less memory than the lease says
            return None
        return slot, chunk

    def _refusal(self, pending: PendingSequence) -> _Refusal:
        return _Refusal(pending, self._blocks.revision, len(self._table))

    def _first_chunk(self, pending: PendingSequence, prefix: Prefix, budget: int) -> int | None:
        """How many tokens after the prefix are computed first; None where there is no room."""
        num_tokens, found = len(pending.token_ids), prefix.num_tokens
        num_running = len(self._table)
        chunk = min(num_tokens - found, budget)
        if self._blocks.can_admit(prefix, num_tokens, found + chunk, margin_blocks=num_running):
            return chunk
        if num_running:
            return None
        chunk = min(
            chunk, *(group.block_tokens - found % group.block_tokens for group in self._blocks.groups)
        )
        fits = self._blocks.can_admit(prefix, num_tokens, found + chunk, margin_blocks=0)
        return chunk if fits else None


def _joined(plan: StepPlan, slots: NDArray[np.int64], chunks: NDArray[np.int64]) -> StepPlan:
    """The plan with these prefills; a prompt of one token counts as a decode."""
    if not len(slots):
        return plan
    single = chunks == 1
    decodes, prefills = plan.slots[: plan.num_decodes], plan.slots[plan.num_decodes :]
    return StepPlan(
        np.concatenate((decodes, slots[single], prefills, slots[~single])),
        np.concatenate(
            (
                plan.num_new[: plan.num_decodes],
                chunks[single],
                plan.num_new[plan.num_decodes :],
                chunks[~single],
            )
        ),
        plan.num_decodes + int(single.sum()),
    )
