"""Turns a step's plan into the tensors of one forward pass, without a loop over sequences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.torch.kv.block_tables import BlockTables
from engines.torch.model.batch import ForwardBatch
from engines.torch.scheduling.compose import StepPlan
from engines.torch.scheduling.sequences import SequenceTable

__all__ = ["BuiltBatch", "ScoredTokens", "build_batch"]


@dataclass(slots=True)
class ScoredTokens:
    """Tokens of prompts whose log-probabilities a step finds, sequence after sequence.

    Attributes:
        slots: int64 [P], whose they are.
        token_ids: int64 [P].
    """

    slots: NDArray[np.int64]
    token_ids: NDArray[np.int64]


@dataclass(slots=True)
class BuiltBatch:
    """A batch, and what its D + P rows of logits are for.

    Attributes:
        forward: what the model is given.
        sampling_slots: int64 [D]; from row r ``sampling_slots[r]`` draws a token.
        scored: the P tokens that the other rows are about; None if there are none.
    """

    forward: ForwardBatch
    sampling_slots: NDArray[np.int64]
    scored: ScoredTokens | None


def build_batch(
    table: SequenceTable, blocks: BlockTables, plan: StepPlan, device: torch.device
) -> BuiltBatch:
    """The batch of this plan, whose blocks are in place."""
    slots, num_new = plan.slots, plan.num_new
    query_start = np.concatenate((np.zeros(1, np.int64), np.cumsum(num_new)))
    row_of_token = np.repeat(np.arange(len(slots)), num_new)
    slot_of_token = slots[row_of_token]
    within_chunk = np.arange(query_start[-1]) - query_start[row_of_token]
    computed = table.num_computed[slots]
    positions = computed[row_of_token] + within_chunk
    context_lens = computed + num_new
    samples = context_lens == table.num_tokens[slots]
    max_context_tokens = int(context_lens.max())
    logits_rows = query_start[1:][samples] - 1
    scored = None
    if (table.score_until[slots] > computed).any():
        rows, scored = _to_score(table, slot_of_token, positions)
        logits_rows = np.concatenate((logits_rows, rows))

    def tensor(values: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(values).to(device)

    sizes = [group.block_tokens for group in blocks.groups]
    forward = ForwardBatch(
        token_ids=tensor(table.token_ids[slot_of_token, positions].astype(np.int64)),
        positions=tensor(positions),
        query_start=tensor(query_start),
        context_lens=tensor(context_lens),
        num_decodes=plan.num_decodes,
        max_query_tokens=int(num_new[plan.num_decodes :].max(initial=1)),
        max_context_tokens=max_context_tokens,
        block_tables=tuple(
            tensor(rows[slots, : -(-max_context_tokens // size)])
            for rows, size in zip(blocks.tables, sizes, strict=True)
        ),
        write_blocks=tuple(
            tensor(rows[slot_of_token, positions // size])
            for rows, size in zip(blocks.tables, sizes, strict=True)
        ),
        logits_rows=tensor(logits_rows),
    )
    return BuiltBatch(forward, slots[samples], scored)


def _to_score(
    table: SequenceTable, slot_of_token: NDArray[np.int64], positions: NDArray[np.int64]
) -> tuple[NDArray[np.int64], ScoredTokens | None]:
    """Which new tokens have a next one in the prompt whose log-probability is wanted, and what that is."""
    first, end = table.score_from[slot_of_token], table.score_until[slot_of_token]
    rows = np.flatnonzero((positions >= first) & (positions < end))
    if not len(rows):
        return rows, None
    slots = slot_of_token[rows]
    return rows, ScoredTokens(slots, table.token_ids[slots, positions[rows] + 1].astype(np.int64))
