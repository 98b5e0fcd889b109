"""KV that the sequences of one model are expected to need."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engines.torch.kv.block_tables import BlockTables
from engines.torch.kv.prefix import Prefix
from engines.torch.scheduling.counters import RunnerCounters
from engines.torch.scheduling.sequences import SequenceTable
from engines.torch.scheduling.shared_kv import SharerDemand
from engines.torch.scheduling.waiting import PendingSequence
from memory_manager.kv_spec import PAGE_BYTES, KVGroup
from memory_manager.policy.kv_forecast import KVDemand, expected_left

__all__ = ["ModelDemand"]


class ModelDemand:
    """Columns for ``kv_forecast``, of sequences that run and of those that wait.

    KV is counted in blocks, each with its part of its page. Of a window group a sequence is counted with the most
    that it will hold, for that is soon reached; so only the full groups grow with each token.

    Args:
        table, blocks: of the running sequences.
        counters: have the mean of the outputs.
    """

    def __init__(self, table: SequenceTable, blocks: BlockTables, counters: RunnerCounters) -> None:
        self._table = table
        self._blocks = blocks
        self._counters = counters
        self._token_bytes = sum(
            _block_bytes(group) / group.block_tokens for group in blocks.groups if group.kind != "window"
        )

    def running(self) -> SharerDemand:
        table, slots = self._table, self._table.active_slots()
        num_tokens, num_computed = table.num_tokens[slots], table.num_computed[slots]
        num_unshared = self._blocks.num_unshared_tokens(slots, num_computed)
        demand = self._columns(
            num_tokens - table.num_prompt[slots],
            table.max_length[slots] - table.num_prompt[slots],
            num_tokens,
            num_computed - num_unshared,
            priority=table.priority[slots],
            arrival=table.arrival[slots],
            num_lost_tokens=num_unshared,
            may_go=table.is_late[slots] & (num_computed >= table.kept_until[slots]),
        )
        return SharerDemand(slots, demand, self._blocks.num_shared_tokens() * self._token_bytes)

    def waiting(self, sequences: Sequence[PendingSequence]) -> KVDemand:
        """KV of sequences that share nothing with any."""
        num_tokens = np.array([len(each.token_ids) for each in sequences], np.int64)
        num_prompt = np.array([each.num_prompt for each in sequences], np.int64)
        max_tokens = np.array([each.request.sampling.max_tokens for each in sequences], np.int64)
        return self._columns(
            num_tokens - num_prompt,
            np.minimum(max_tokens, self._table.max_model_len - num_prompt),
            num_tokens,
            np.zeros(len(sequences), np.int64),
            priority=np.array([each.request.priority for each in sequences], np.int64),
            arrival=np.array([each.arrival for each in sequences], np.int64),
            num_lost_tokens=np.zeros(len(sequences), np.int64),
            may_go=np.zeros(len(sequences), np.bool_),
        )

    def newcomer(self, pending: PendingSequence, prefix: Prefix) -> KVDemand:
        """KV of the next of the queue.

        Args:
            prefix: what was found for it, claimed.
        """
        demand = self.waiting([pending])
        demand.held_bytes[0] -= self._blocks.num_shared_tokens(prefix) * self._token_bytes
        return demand

    def _columns(
        self,
        num_output: NDArray[np.int64],
        most_output: NDArray[np.int64],
        num_tokens: NDArray[np.int64],
        num_shared: NDArray[np.int64],
        *,
        priority: NDArray[np.int64],
        arrival: NDArray[np.int64],
        num_lost_tokens: NDArray[np.int64],
        may_go: NDArray[np.bool_],
    ) -> KVDemand:
        mean_output = np.full(len(num_output), self._counters.mean_output_tokens)
        num_left = expected_left(num_output.astype(float), mean_output, most_output.astype(float))
        held_bytes = num_shared.astype(np.float64) * -self._token_bytes
        for group in self._blocks.groups:
            num_blocks = -(-num_tokens // group.block_tokens)
            if group.window_tokens is not None:
                num_blocks = np.minimum(
                    np.ceil((num_tokens + num_left) / group.block_tokens),
                    group.blocks_for_tokens(self._table.max_model_len),
                )
            held_bytes = held_bytes + num_blocks * _block_bytes(group)
        token_bytes = np.full(len(num_output), self._token_bytes)
        return KVDemand(num_left, held_bytes, token_bytes, priority, arrival, num_lost_tokens, may_go)


def _block_bytes(group: KVGroup) -> float:
    """Bytes of a block with its part of what is lost of its page."""
    return PAGE_BYTES / group.blocks_per_page
