"""The running sequences of one model as a struct of arrays.

A sequence holds one slot from its admission to its end or preemption. A step reads and writes columns by
arrays of slots; Python touches a single sequence only when it comes or goes.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from engines.torch.kv.prefix import BlockKeys
from engines.torch.sampling.sampling_rows import SamplingRows
from engines.torch.scheduling.compose import RunningSequences
from engines.torch.scheduling.waiting import PendingSequence

__all__ = ["SequenceTable"]


class SequenceTable:
    """Columns over C slots of at most L tokens each.

    Attributes:
        token_ids: int32 [C, L], prompt and output.
        num_tokens: int64 [C], known tokens: prompt and output.
        num_computed: int64 [C], tokens whose KV is in the cache. A sequence decodes when all but its last
            token are; else it is in prefill.
        num_prompt: int64 [C], of these the prompt's.
        max_length: int64 [C], prompt plus output at which it ends.
        score_from, score_until: int64 [C], positions between which the next token's log-probability is wanted:
            of the whole prompt, less what was found before a preemption; nothing if nobody asked.
        num_prompt_logprobs: int64 [C], likeliest tokens wanted beside each of these.
        sequence_ids: uint64 [C]. arrival, priority: int64 [C].
        deadline_s: float64 [C], for the first token; ``inf`` once it was given, or the deadline has passed.
        is_late: bool [C], whether it passed first.
        tpot_target_s: float64 [C], for each token after the first; ``inf`` if none is promised, or it is late.
        due_s: float64 [C], when the next token is to come, for the mean to keep the target; ``inf`` if there is no
            target, or no token since it was submitted. Where it is finite the sequence is paced.
        kept_until: int64 [C], computed tokens up to which a late one makes way for nobody that is in time.
        sampling: parameters of C rows.
    """

    def __init__(self, num_slots: int, max_model_len: int) -> None:
        self.max_model_len = max_model_len
        self.token_ids = np.zeros((num_slots, max_model_len), np.int32)
        self.num_tokens = np.zeros(num_slots, np.int64)
        self.num_computed = np.zeros(num_slots, np.int64)
        self.num_prompt = np.zeros(num_slots, np.int64)
        self.max_length = np.zeros(num_slots, np.int64)
        self.score_from = np.zeros(num_slots, np.int64)
        self.score_until = np.zeros(num_slots, np.int64)
        self.num_prompt_logprobs = np.zeros(num_slots, np.int64)
        self.sequence_ids = np.zeros(num_slots, np.uint64)
        self.arrival = np.zeros(num_slots, np.int64)
        self.priority = np.zeros(num_slots, np.int64)
        self.deadline_s = np.full(num_slots, math.inf)
        self.is_late = np.zeros(num_slots, np.bool_)
        self.tpot_target_s = np.full(num_slots, math.inf)
        self.due_s = np.full(num_slots, math.inf)
        self.kept_until = np.zeros(num_slots, np.int64)
        self.sampling = SamplingRows.empty(num_slots)
        self._active = np.zeros(num_slots, np.bool_)
        self._pending: list[PendingSequence | None] = [None] * num_slots
        self._free_slots = list(range(num_slots - 1, -1, -1))
        self._slot_of: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._slot_of)

    def __contains__(self, sequence_id: int) -> bool:
        return sequence_id in self._slot_of

    @property
    def num_free_slots(self) -> int:
        return len(self._free_slots)

    def active_slots(self) -> NDArray[np.int64]:
        return np.flatnonzero(self._active)

    def running(self) -> RunningSequences:
        """The columns that the step policy reads, of all sequences."""
        slots = self.active_slots()
        return RunningSequences(
            slots=slots,
            priority=self.priority[slots],
            deadline_s=self.deadline_s[slots],
            arrival=self.arrival[slots],
            num_tokens=self.num_tokens[slots],
            num_computed=self.num_computed[slots],
            is_late=self.is_late[slots],
            is_unpaced=(self.due_s[slots] == math.inf) & (self.num_tokens[slots] > self.num_prompt[slots]),
        )

    def is_active(self, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these slots hold a sequence."""
        return self._active[slots]

    def slot_of(self, sequence_id: int) -> int:
        return self._slot_of[sequence_id]

    def keys_of(self, slot: int) -> BlockKeys | None:
        """Keys of the blocks of a sequence; None if it shares them with nobody."""
        pending = self._pending[slot]
        return None if pending is None else pending.keys

    def insert(self, pending: PendingSequence, eos_ids: tuple[int, ...], num_computed: int = 0) -> int:
        """Gives a sequence a slot. There must be a free one.

        Args:
            num_computed: tokens whose KV is there, at most ``pending.max_prefix_tokens``.
        """
        slot = self._free_slots.pop()
        request = pending.request
        num_tokens = len(pending.token_ids)
        self.token_ids[slot, :num_tokens] = pending.token_ids
        self.num_tokens[slot] = num_tokens
        self.num_prompt[slot] = pending.num_prompt
        self.num_computed[slot] = num_computed
        self.max_length[slot] = min(pending.num_prompt + request.sampling.max_tokens, self.max_model_len)
        self.sequence_ids[slot] = request.sequence_id
        self.arrival[slot] = pending.arrival
        self.priority[slot] = request.priority
        self.deadline_s[slot] = math.inf if pending.is_late else pending.deadline_s
        self.is_late[slot] = pending.is_late
        self.tpot_target_s[slot] = math.inf if pending.is_late else request.tpot_target_s
        self.due_s[slot] = pending.due_s
        self.kept_until[slot] = pending.kept_until
        self.sampling.set(slot, request.sampling, num_prompt=pending.num_prompt, eos_ids=eos_ids)
        self.score_from[slot] = self.score_until[slot] = 0
        if pending.first is not None and pending.first.prompt_logprobs is not None:
            self.score_from[slot] = len(pending.first.prompt_logprobs)
            self.score_until[slot] = pending.num_prompt - 1
            self.num_prompt_logprobs[slot] = request.sampling.prompt_logprobs or 0
        self._active[slot] = True
        self._pending[slot] = pending
        self._slot_of[request.sequence_id] = slot
        return slot

    def remove(self, slot: int) -> PendingSequence:
        """Takes a sequence out, as one that waits again with all its tokens."""
        pending = self._pending[slot]
        if pending is None:
            raise ValueError(f"slot {slot} holds no sequence")
        self._pending[slot] = None
        self._active[slot] = False
        del self._slot_of[pending.request.sequence_id]
        self._free_slots.append(slot)
        return PendingSequence(
            request=pending.request,
            token_ids=self.token_ids[slot, : self.num_tokens[slot]].copy(),
            arrival=pending.arrival,
            preempted=True,
            deadline_s=float(self.deadline_s[slot]),
            is_late=bool(self.is_late[slot]),
            due_s=float(self.due_s[slot]),
            first=pending.first,
            keys=pending.keys,
        )

    def append(self, slots: NDArray[np.int64], token_ids: NDArray[np.int64], now_s: float) -> None:
        """Adds one drawn token to each of these sequences, none of which is at its ``max_length``.

        Args:
            now_s: on the clock of the deadlines.
        """
        self.token_ids[slots, self.num_tokens[slots]] = token_ids
        self.num_tokens[slots] += 1
        self.deadline_s[slots] = math.inf
        due_s = self.due_s[slots]
        due_s[due_s == math.inf] = now_s
        self.due_s[slots] = due_s + self.tpot_target_s[slots]

    def note_late(self, now_s: float) -> bool:
        """Notes whose deadline has passed without a first token: nobody hurries for them any more. Returns
        whether any has."""
        passed = self._active & (self.deadline_s < now_s)
        self.is_late |= passed
        self.deadline_s[passed] = math.inf
        self.tpot_target_s[passed] = math.inf
        return bool(passed.any())

    def paced_decodes(self) -> tuple[int, float, float]:
        """Number of the paced sequences that decode, when the first of their next tokens is due, and the least
        target; ``inf`` if there are none."""
        paced = self._active & (self.due_s < math.inf)
        if not paced.any():
            return 0, math.inf, math.inf
        paced &= self.num_tokens - self.num_computed == 1
        due_s, target_s = self.due_s[paced], self.tpot_target_s[paced]
        return len(due_s), float(due_s.min(initial=math.inf)), float(target_s.min(initial=math.inf))

    @property
    def in_time_priority(self) -> float:
        """The highest priority of all that are not late; ``-inf`` if there are none."""
        in_time = self.priority[self._active & ~self.is_late]
        return float(in_time.max()) if len(in_time) else -math.inf

    def earliest_deadline_s(self) -> float:
        """The earliest deadline of all that have no first token yet and are in time; ``inf`` if there is none."""
        return float(self.deadline_s[self._active].min(initial=math.inf))
