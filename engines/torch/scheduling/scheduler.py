"""Takes what one model computes in its next step: iteration-level continuous batching with chunked prefill.

A step is planned in this order; ``compose`` chooses each time, and here blocks and slots are taken for it:

1. every running decode, one token each; while sequences of the worker are paced, of those that are not paced only as
   many as leave the others their time, and the rest sit the step out with their KV;
2. chunks of the running prefills in what the budget leaves, the most urgent first;
3. blocks for both; if there is no room, the least urgent sequence is preempted and 1 is done again. While the lease
   shrinks, whoever needs a block sits the step out instead, and nobody is admitted: whose blocks go is decided for
   all models together (``engines.torch.shrinking``), and soon done;
4. new sequences from the queue, as long as budget, slots and blocks last, and the worker's sequences are not expected
   to need more KV at any time than there is. One that is in time takes the place of those of a lower priority, and of
   late ones of its own, of any model, if that is enough; and of 32 admissions one goes to the late one that has
   waited for longest. Beside others in time, prefills of late ones take a small part of the step. One that begins as
   another does whose prefill is in this step (the choices of one request) waits for the next, and finds what that one
   computed.

One sequence of the worker is the first (``compose.claim_order``). In 3 and 4 it takes what it needs from whoever has
it, of any model, but for what an operator guaranteed to that model: so it never waits for KV, and none is ever
preempted for another that it comes before.

A preempted sequence loses its blocks and keeps its tokens. When it is readmitted it computes those again whose
KV is neither stored still nor in host memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines.torch.kv.block_tables import BlockTables
from engines.torch.kv.prefix import Prefix
from engines.torch.scheduling import compose
from engines.torch.scheduling.compose import PreemptibleSequences, RunningSequences, StepPlan
from engines.torch.scheduling.demand import ModelDemand
from engines.torch.scheduling.sequences import SequenceTable
from engines.torch.scheduling.shared_kv import Claim, SharedKV, Sharer
from engines.torch.scheduling.waiting import PendingSequence, WaitingQueue
from memory_manager.kv_spec import PAGE_BYTES, kv_bytes_for_tokens
from memory_manager.policy.kv_forecast import KVDemand, kept_until_tokens
from memory_manager.policy.step_model import StepModel

__all__ = ["Scheduler"]


class _Next(NamedTuple):
    """The next to be admitted.

    Attributes:
        is_its_turn: it is late and goes before others, because it has waited for longest.
        takes_place: of others that run, if it must: it is in time, or goes before one that is.
    """

    pending: PendingSequence
    is_its_turn: bool
    takes_place: bool

    @property
    def order(self) -> tuple[int, int]:
        """Its place among all of the worker."""
        return compose.claim_order(self.pending.request.priority, self.pending.arrival)


class _Refusal(NamedTuple):
    """Remembers that there was no room for a sequence, and of how much.

    Attributes:
        standing: of the sequence and its model; if it changes, so may the answer.
        revision: of the worker's KV.
        newcomer: KV that it is expected to need.
        num_blocks: by group, blocks that it would have begun with, beside what was found for it.
        pages_short: pages that these lacked.
        pages_short_unclaimed: as many as they lack while nothing of what was found is claimed.
        next_key: of the first block that was not found; None if it is computed in any case.
        waits_for_others: it may find room when other models let go of KV.
    """

    pending: PendingSequence
    standing: tuple[int, bool]
    revision: tuple[int, ...]
    newcomer: KVDemand
    num_blocks: list[int]
    pages_short: int
    pages_short_unclaimed: int
    next_key: bytes | None
    waits_for_others: bool


class Scheduler:
    """Carries out the step policy for one model, over its table, its blocks and its queue.

    Args:
        max_tokens_per_step: at least the number of slots.
        costs: of its steps.
        demand: what its sequences are expected to need.
        shared: KV of the worker.
        sharer: the model, as the worker's others know it.
        preemptible: the running sequences, with what a preemption of each would cost and free.
        find: finds, and claims, what of a waiting sequence need not be computed.
        admit: gives a sequence of the queue a slot of the table, and what was found for it; returns
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
        costs: StepModel,
        demand: ModelDemand,
        shared: SharedKV,
        sharer: Sharer,
        preemptible: Callable[[], PreemptibleSequences],
        find: Callable[[PendingSequence], Prefix],
        admit: Callable[[PendingSequence, Prefix], int],
        preempt: Callable[[int], None],
        ended_for_good: Callable[[int], bool],
    ) -> None:
        self._table = table
        self._blocks = blocks
        self._waiting = waiting
        self._max_tokens = max_tokens_per_step
        self._costs = costs
        self._demand = demand
        self._shared = shared
        self._sharer = sharer
        self._preemptible = preemptible
        self._find = find
        self._admit = admit
        self._preempt = preempt
        self._ended_for_good = ended_for_good
        self._refused: _Refusal | None = None
        self._in_time_priority = -math.inf
        self._max_unpaced = math.inf
        self._keeps_out_unpaced = False
        self._late_budget = max_tokens_per_step  # what its last step left of the tokens for late ones

    @property
    def is_short_of_kv(self) -> bool:
        """Whether a sequence waits that has found no room."""
        return self._refused is not None and self._waiting.holds(self._refused.pending)

    def longest_late(self, *, for_others: bool) -> PendingSequence | None:
        """See ``Sharer``."""
        pending, refused = self._waiting.longest_late(), self._refused
        if pending is None or not self._table.num_free_slots:
            return None
        if self._late_budget <= 0 and self._yields(pending):
            return None
        is_in_vain = refused is not None and refused.pending is pending and not refused.waits_for_others
        return None if for_others and is_in_vain else pending

    def claim(self) -> Claim | None:
        """See ``Sharer``."""
        running = self._table.running()
        claims = [
            (compose.claim_order(priority, arrival), num_tokens)
            for priority, arrival, num_tokens in zip(
                running.priority.tolist(), running.arrival.tolist(), running.num_tokens.tolist(), strict=True
            )
        ]
        following = self._next() if self._table.num_free_slots else None
        if following is not None and not following.pending.is_late:
            claims.append((following.order, len(following.pending.token_ids)))
        if not claims:
            return None
        order, num_tokens = min(claims)
        return Claim(order, kv_bytes_for_tokens(self._blocks.groups, num_tokens))

    def plan(self, now_s: float) -> StepPlan | None:
        """Plans the next step and takes its blocks; None if nothing can run now.

        Args:
            now_s: on the clock of the deadlines.
        """
        self._in_time_priority = self._shared.in_time_priority
        self._max_unpaced = self._shared.most_unpaced_decodes(self._costs.decode_s, now_s)
        self._keeps_out_unpaced = self._max_unpaced < math.inf and self._shared.keeps_out_unpaced(now_s)
        if self._shared.is_shrinking:
            plan = self._going_on()
        else:
            plan, was_preempted = self._take_running()
            if compose.is_open_to_new(plan, was_preempted):
                plan = self._take_waiting(plan)
        return plan if len(plan) else None

    def _choose_chunks(self, running: RunningSequences) -> StepPlan:
        return compose.choose_chunks(running, self._max_tokens, self._in_time_priority, self._max_unpaced)

    def _going_on(self) -> StepPlan:
        """Plans those that run and need no more blocks."""
        plan = self._choose_chunks(self._table.running())
        num_missing = np.sum(self._missing(plan), axis=0)
        return plan.without(plan.slots[num_missing > 0].tolist())

    def _take_running(self) -> tuple[StepPlan, bool]:
        """Plans what runs, with blocks; and whether a sequence was preempted for it."""
        was_preempted = False
        while True:
            running = self._table.running()
            plan = self._choose_chunks(running)
            if self._extend(plan):
                return plan, was_preempted
            if len(running) == 1:
                block_tokens = min(group.block_tokens for group in self._blocks.groups)
                shorter = compose.cut_at_block_end(plan, int(running.num_computed[0]), block_tokens)
                if self._extend(shorter):
                    return shorter, was_preempted
                if self._ended_for_good(int(plan.slots[0])):
                    continue
                order = compose.claim_order(int(running.priority[0]), int(running.arrival[0]))
                if self._takes_from_another(order, self._missing_bytes(plan)):
                    was_preempted = True
                    continue
            candidates = self._preemptible()
            least_urgent = compose.least_urgent(candidates, self._missing_bytes(plan))
            assert least_urgent is not None, "an empty plan always has its blocks"
            was_preempted = True
            self._preempt(int(candidates.slots[least_urgent]))

    def _takes_from_another(
        self, order: tuple[int, int], wanted_bytes: float, gone: list[int] | None = None
    ) -> bool:
        """Preempts one sequence of any model if the one of this order is the worker's first; False if it is not, or
        nobody is left to make way.

        Args:
            wanted_bytes: that it lacks.
            gone: if a slot of the table is emptied, it is added.
        """
        if self._shared.first() != order:
            return False
        way = self._shared.making_way_for_first(self._sharer, order, wanted_bytes)
        if way is None:
            return False
        self._preempt_all([way], [] if gone is None else gone)
        return True

    def _preempt_all(self, sequences: Iterable[tuple[Sharer, int]], gone: list[int]) -> None:
        """Preempts sequences by model and slot; slots of the table are added to ``gone``."""
        for sharer, slot in sequences:
            if sharer is self._sharer:
                gone.append(slot)
                self._preempt(slot)
            else:
                self._shared.preempt(sharer, slot)

    def _extend(self, plan: StepPlan) -> bool:
        computed = self._table.num_computed[plan.slots]
        return self._blocks.extend(plan.slots, self._table.num_tokens[plan.slots], computed + plan.num_new)

    def _missing(self, plan: StepPlan) -> list[NDArray[np.int64]]:
        """Blocks of each group that each sequence of a plan lacks, int64 [S]."""
        computed = self._table.num_computed[plan.slots]
        return self._blocks.missing(plan.slots, self._table.num_tokens[plan.slots], computed + plan.num_new)

    def _missing_bytes(self, plan: StepPlan) -> float:
        pairs = zip(self._missing(plan), self._blocks.groups, strict=True)
        return float(sum(int(counts.sum()) * group.block_bytes for counts, group in pairs))

    def _take_waiting(self, plan: StepPlan) -> StepPlan:
        budget = self._max_tokens - plan.num_new_tokens
        self._late_budget = compose.most_late_tokens(self._max_tokens) - self._num_yielding(plan)
        slots: list[int] = []
        chunks: list[int] = []
        gone: list[int] = []
        held_back: list[PendingSequence] = []
        coming = self._keys_coming_of(plan) if len(self._waiting) else set()
        try:
            while compose.may_admit_more(budget, self._table.num_free_slots, len(held_back)):
                first = self._next()
                if first is None or self._is_still_refused(first):
                    break
                pending = first.pending
                if self._keeps_out_unpaced and pending.is_unpaced:
                    break
                yields = self._yields(pending)
                if yields and self._late_budget <= 0:
                    break
                prefix = self._find(pending)
                if self._next_key(pending, prefix) in coming:
                    self._blocks.unclaim(prefix)
                    held_back.append(self._waiting.remove(pending.request.sequence_id))
                    continue
                most_tokens = min(budget, self._late_budget) if yields else budget
                chunk = self._admit_next(first, prefix, most_tokens, gone)
                if chunk is None:
                    break
                slot, num_new = chunk
                slots.append(slot)
                chunks.append(num_new)
                coming.update(self._keys_coming(slot, num_new))
                budget -= num_new
                self._late_budget -= num_new if yields else 0
        finally:
            for pending in held_back:
                self._waiting.push(pending)
        return compose.with_admitted(
            plan.without(gone), np.array(slots, np.int64), np.array(chunks, np.int64)
        )

    def _yields(self, pending: PendingSequence) -> bool:
        """Whether a waiting sequence is a late one that yields to others in time."""
        return pending.is_late and pending.request.priority <= self._in_time_priority

    def _num_yielding(self, plan: StepPlan) -> int:
        """Tokens of a plan that are of late prefills which yield to others in time."""
        slots, num_new = plan.slots[plan.num_decodes :], plan.num_new[plan.num_decodes :]
        yields = self._table.is_late[slots] & (self._table.priority[slots] <= self._in_time_priority)
        return int(num_new[yields].sum())

    def _keys_coming_of(self, plan: StepPlan) -> set[bytes]:
        prefills = zip(
            plan.slots[plan.num_decodes :].tolist(), plan.num_new[plan.num_decodes :].tolist(), strict=True
        )
        return {key for slot, num_new in prefills for key in self._keys_coming(slot, num_new)}

    def _keys_coming(self, slot: int, num_new: int) -> list[bytes]:
        """Keys of the first group's blocks that a sequence will have filled after this step and shares."""
        keys = self._table.keys_of(slot)
        if keys is None:
            return []
        computed, size = int(self._table.num_computed[slot]), self._blocks.groups[0].block_tokens
        return keys.keys(0, self._table.token_ids[slot], computed // size, (computed + num_new) // size)

    def _next_key(self, pending: PendingSequence, prefix: Prefix) -> bytes | None:
        """Key of the first group's first block after the prefix; None if it has to be computed in any case."""
        size = self._blocks.groups[0].block_tokens
        column = prefix.num_tokens // size
        if pending.keys is None or (column + 1) * size > pending.max_prefix_tokens:
            return None
        return pending.keys.keys(0, pending.token_ids, column, column + 1)[0]

    def _next(self) -> _Next | None:
        """The next to be admitted; None if there is none, or another model has the one whose turn it is."""
        pending = self._waiting.peek()
        if pending is None:
            return None
        late = self._shared.late_in_turn(self._sharer)
        if late is None or pending.request.priority > late.request.priority:
            return _Next(pending, is_its_turn=False, takes_place=not pending.is_late)
        return _Next(late, True, not pending.is_late) if self._waiting.holds(late) else None

    def _admit_next(
        self, first: _Next, prefix: Prefix, budget: int, gone: list[int]
    ) -> tuple[int, int] | None:
        """Slot and first chunk of the next in the queue; None if there is no room for it.

        Args:
            prefix: what was found for it, claimed.
            gone: slots of the table that were emptied for it are added.
        """
        pending = first.pending
        prefix, chunk = self._first_chunk(pending, prefix, budget)
        newcomer = self._demand.newcomer(pending, prefix)
        num_blocks = self._first_blocks(pending, prefix, budget)[-1][1]
        pages_short = 0 if chunk is not None else self._blocks.pages_short(num_blocks)
        way = self._shared.making_way(
            self._sharer, newcomer, pages_short * PAGE_BYTES, takes_place=first.takes_place
        )
        if way:
            self._preempt_all(way, gone)
            prefix, chunk = self._first_chunk(pending, prefix, budget)
        if (way is None or chunk is None) and self._is_first(first):
            way = []
            while chunk is None and self._takes_from_another(first.order, pages_short * PAGE_BYTES, gone):
                prefix, chunk = self._first_chunk(pending, prefix, budget)
        if way is None or chunk is None:
            next_key = self._next_key(pending, prefix)
            self._blocks.unclaim(prefix)
            self._refused = _Refusal(
                pending,
                self._standing(first),
                self._shared.revision,
                newcomer,
                num_blocks,
                max(0, pages_short),
                self._blocks.pages_short(num_blocks),
                next_key,
                self._shared.may_wait_for_others(self._sharer),
            )
            return None
        num_tokens = len(pending.token_ids)
        if not self._blocks.prepare(prefix, num_tokens, prefix.num_tokens + chunk):
            self._blocks.unclaim(prefix)
            # Where the device has less memory than the lease says, nothing here tells when it has more.
            self._refused = None
            return None
        self._waiting.remove(pending.request.sequence_id)
        pending.kept_until = kept_until_tokens(prefix.num_tokens, num_tokens, is_its_turn=first.is_its_turn)
        slot = self._admit(pending, prefix)
        self._shared.note_admitted(is_late_ones_turn=first.is_its_turn)
        if not self._extend(StepPlan(np.array([slot]), np.array([chunk]), 0)):
            self._preempt(slot)  # the device has less memory than the lease says
            return None
        return slot, chunk

    def _is_first(self, following: _Next) -> bool:
        """Whether the next to be admitted is the worker's first. A late one never is: it has its turn."""
        return not following.pending.is_late and self._shared.first() == following.order

    def _standing(self, first: _Next) -> tuple[int, bool]:
        return len(self._table), first.takes_place

    def _is_still_refused(self, first: _Next) -> bool:
        """Whether there can be no room for one that there was none for; to look up again what is stored for it would
        cost more than to see that."""
        refused = self._refused
        if (
            refused is None
            or refused.pending is not first.pending
            or refused.standing != self._standing(first)
            or (refused.next_key is not None and self._blocks.is_stored(refused.next_key))
        ):
            return False
        num_freed = refused.pages_short_unclaimed - self._blocks.pages_short(refused.num_blocks)
        pages_short = max(0, refused.pages_short - num_freed)
        if self._shared.revision != refused.revision or pages_short < refused.pages_short:
            way = self._shared.making_way(
                self._sharer, refused.newcomer, pages_short * PAGE_BYTES, takes_place=first.takes_place
            )
            if way is not None:
                return False
        return not self._is_first(first)

    def _first_blocks(
        self, pending: PendingSequence, prefix: Prefix, budget: int
    ) -> list[tuple[int, list[int]]]:
        """Numbers of tokens after the prefix that may be computed first, with the blocks of each group that have to
        be had for them."""
        num_tokens, num_found = len(pending.token_ids), prefix.num_tokens
        block_tokens = [group.block_tokens for group in self._blocks.groups]
        return [
            (
                chunk.num_tokens,
                self._blocks.wanted(prefix, num_tokens, num_found + chunk.num_tokens, chunk.margin_blocks),
            )
            for chunk in compose.first_chunks(num_tokens, num_found, budget, len(self._table), block_tokens)
        ]

    def _first_chunk(
        self, pending: PendingSequence, prefix: Prefix, budget: int
    ) -> tuple[Prefix, int | None]:
        """The prefix that it begins with, claimed, and the number of tokens after it that are computed first; None if
        there is no room."""
        for num_tokens, num_blocks in self._first_blocks(pending, prefix, budget):
            if self._blocks.pages_short(num_blocks) <= 0:
                return prefix, num_tokens
        if len(self._table) or not prefix.num_tokens:
            return prefix, None
        # What was found may lie on more pages than one sequence of its length fills; one that runs alone begins
        # without it.
        self._blocks.unclaim(prefix)
        return self._first_chunk(pending, Prefix.empty(self._blocks.groups), budget)
