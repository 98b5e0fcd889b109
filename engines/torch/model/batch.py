"""The input of one forward pass of one model: the contract between the step loop and the model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["ForwardBatch"]


@dataclass(slots=True)
class ForwardBatch:
    """New tokens of S sequences in one step: decodes first, prefill chunks after them.

    T is the number of new tokens, R the number of rows whose logits are wanted. All tensors are int64 and
    on the model's device; the plain integers spare a device its synchronization.

    Attributes:
        token_ids: [T] all new tokens of the step, sequence after sequence.
        positions: [T] absolute position of each token.
        query_start: [S + 1] tokens of sequence s are ``[query_start[s], query_start[s + 1])``.
        context_lens: [S] tokens in the cache of sequence s once this step has written.
        num_decodes: number of sequences with exactly one new token each; they come first.
        max_query_tokens: most new tokens of a prefill sequence (1 if there is none).
        max_context_tokens: most tokens in the cache of any sequence.
        block_tables: per KV group, [S, max_blocks_g] pool offsets in granules of that group. Column c holds
            the block of positions ``c * block_tokens`` and on. Padding is 0, the null block, and so are a
            window group's entries behind the window, whose blocks were freed.
        write_blocks: per KV group, [T] granule offset of the block that each new token is written to.
        logits_rows: [R] rows of T whose logits are wanted, in any order.
    """

    token_ids: Tensor
    positions: Tensor
    query_start: Tensor
    context_lens: Tensor
    num_decodes: int
    max_query_tokens: int
    max_context_tokens: int
    block_tables: tuple[Tensor, ...]
    write_blocks: tuple[Tensor, ...]
    logits_rows: Tensor
