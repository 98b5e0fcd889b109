"""Turns the drawn tokens of a step into tokens to send and ends of sequences."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engines.api import Finished, FinishReason, StepOutput
from engines.torch.sampling.sampler import Sampled
from engines.torch.scheduling.sequences import SequenceTable

__all__ = ["collect_output"]


def collect_output(
    table: SequenceTable, slots: NDArray[np.int64], sampled: Sampled, output: StepOutput, now_s: float
) -> NDArray[np.int64]:
    """Appends the drawn tokens to their sequences and to the output.

    Args:
        slots: [R], the sequence of each drawn token.
        output: of this step, no tokens in it yet.
        now_s: on the clock of the deadlines.

    Returns:
        The slots whose sequences have ended, for the caller to release.
    """
    token_ids = sampled.token_ids
    table.append(slots, token_ids, now_s)
    output.sequence_ids = table.sequence_ids[slots].tolist()
    output.token_ids = token_ids.tolist()
    output.top_logprobs = sampled.top_logprobs
    stopped = (table.sampling.stop_ids[slots] == token_ids[:, None]).any(axis=1)
    at_length = table.num_tokens[slots] >= table.max_length[slots]
    ended = np.flatnonzero(stopped | at_length)
    for row in ended.tolist():
        if stopped[row]:
            end = Finished(output.sequence_ids[row], FinishReason.STOP, stop_token_id=output.token_ids[row])
        else:
            end = Finished(output.sequence_ids[row], FinishReason.LENGTH)
        output.finished.append(end)
    return slots[ended]
