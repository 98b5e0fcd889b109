"""Turns a step's plan into the tensors of one forward pass, without a loop over sequences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.torch.batch import ForwardBatch
from engines.torch.blocks import BlockTables
from engines.torch.scheduler import StepPlan
from engines.torch.sequences import SequenceTable

__all__ = ["BuiltBatch", "build_batch"]


@dataclass(slots=True)
class BuiltBatch:
    """A batch and the slots that draw a token from it.

    Attributes:
        forward: what the model is given.
        sampling_slots: int64 [R]; row r of the logits belongs to ``sampling_slots[r]``.
    """

    forward: ForwardBatch
    sampling_slots: NDArray[np.int64]


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
        logits_rows=tensor(query_start[1:][samples] - 1),
    )
    return BuiltBatch(forward, slots[samples])
