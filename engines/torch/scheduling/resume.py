"""Finds what sequences need not compute: stored by others or by themselves, or swapped out at a preemption."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engines.torch.kv.block_tables import BlockTables
from engines.torch.kv.prefix import BlockKeys, Prefix, root_key
from engines.torch.kv.swap import KVSwap, SwappedKV
from engines.torch.scheduling.compose import PreemptibleSequences
from engines.torch.scheduling.sequences import SequenceTable
from engines.torch.scheduling.waiting import PendingSequence

__all__ = ["Resumption"]

_LEAST_PREFILL_TOKENS = 16


class Resumption:
    """Keeps computed KV for sequences to come, and finds it for those that wait; the book of the blocks.

    Args:
        table, blocks: of the running sequences.
        swap: of this model.
        artifact: says whose weights write the KV.
    """

    def __init__(self, table: SequenceTable, blocks: BlockTables, swap: KVSwap, artifact: bytes) -> None:
        self._table = table
        self._blocks = blocks
        self._swap = swap
        self._artifact = artifact

    def keys(self, scope: bytes | None) -> BlockKeys | None:
        """For a new sequence of this scope."""
        if scope is None:
            return None
        return BlockKeys(root_key(self._artifact, self._swap.kv_dtype, scope), self._blocks.groups)

    def find(self, pending: PendingSequence) -> Prefix:
        """Finds the most that a sequence need not compute, and claims it. Stored blocks come first; what they lack
        comes from host memory, if it is there and copying it is quicker than computing."""
        keys, token_ids, swapped = pending.keys, pending.token_ids, pending.swapped
        prefix = Prefix.empty(self._blocks.groups)
        if keys is not None and pending.max_prefix_tokens > 0:
            prefix = self._blocks.find(keys, token_ids, pending.max_prefix_tokens)
        if swapped is not None and swapped.num_tokens > prefix.num_tokens:
            whole = self._blocks.find_with_gaps(keys, token_ids, swapped.num_tokens, swapped.first_columns)
            if self._swap.is_worth_copying_in(swapped.num_tokens - prefix.num_tokens, whole.gaps):
                prefix = whole
        self._blocks.claim(prefix)
        return prefix

    def begin(self, slot: int, sequence: PendingSequence) -> None:
        """Gives an admitted sequence the blocks that were found for it."""
        prefix, sequence.found = sequence.found, None
        assert prefix is not None, "it was looked up before it was admitted"
        self._blocks.adopt(slot, prefix, shares=sequence.keys is not None)
        try:
            if sequence.swapped is not None and any(len(places) for places in prefix.gaps):
                self._swap.copy_in(sequence.swapped, prefix)
        finally:
            self.forget(sequence)

    def end(self, slot: int) -> None:
        """Gives the blocks of a sequence back."""
        self._blocks.release(np.array([slot]))

    def slots(self) -> set[int]:
        return self._blocks.slots()

    def store(self, slots: NDArray[np.int64]) -> None:
        """Lets others find what these sequences have computed by now."""
        table = self._table
        for slot in self._blocks.with_full_blocks(slots, table.num_computed[slots]).tolist():
            keys = table.keys_of(slot)
            if keys is not None:
                self._blocks.store(slot, int(table.num_computed[slot]), keys, table.token_ids[slot])

    def keep(self, slot: int) -> SwappedKV | None:
        """Copies a sequence that is about to be preempted to host memory, if that is worth it and there is
        room."""
        num_computed = int(self._table.num_computed[slot])
        blocks = self._blocks.computed_blocks(slot, num_computed)
        return self._swap.copy_out(blocks) if self._swap.is_worth_copying_out(blocks) else None

    def preemptible(self) -> PreemptibleSequences:
        """The running sequences, with what a preemption of each would cost and free."""
        table, slots = self._table, self._table.active_slots()
        num_lost = self._blocks.num_unshared_tokens(slots, table.num_computed[slots])
        freed_bytes = self._blocks.unshared_bytes(slots)
        return PreemptibleSequences(
            model=np.zeros(len(slots), np.int64),
            slots=slots,
            priority=table.priority[slots],
            is_late=table.is_late[slots],
            arrival=table.arrival[slots],
            redo_s=self._swap.seconds_to_redo(num_lost, freed_bytes),
            freed_bytes=freed_bytes,
        )

    def forget(self, pending: PendingSequence) -> None:
        """Gives the host memory of a sequence back."""
        if pending.swapped is not None:
            self._swap.drop(pending.swapped)
            pending.swapped = None

    def forget_all(self) -> None:
        """Gives all host memory back."""
        self._swap.drop_all()

    def note_step(self, num_tokens: int, num_decodes: int, seconds: float) -> None:
        """Notes how long a step took. Mostly prefill, it tells how quickly this model computes prompts."""
        self._swap.step_rate.add(num_tokens, seconds)
        if num_tokens >= 2 * num_decodes + _LEAST_PREFILL_TOKENS:
            self._swap.prefill_rate.add(num_tokens, seconds)
