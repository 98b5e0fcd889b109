"""Limits of a replica, and the refusal of a sequence that is beyond them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from engines.api import Finished, FinishReason, SamplingParams, SequenceRequest, TokenIds
from engines.ends import error_end
from memory_manager.kv_spec import KVGroup, kv_bytes_for_tokens
from mooring.errors import ContextLengthError, InsufficientMemoryError, InvalidRequestError, MooringError
from mooring.units import format_bytes

__all__ = ["SequenceLimits"]


@dataclass(frozen=True, slots=True)
class SequenceLimits:
    """Limits of what a replica can ever take.

    Attributes:
        vocab_size: token ids are below it.
        max_model_len: prompt plus output, in tokens.
        groups: its KV groups.
        kv_bytes: the most KV that any lease and its cap let it hold.
    """

    vocab_size: int
    max_model_len: int
    groups: Sequence[KVGroup]
    kv_bytes: int

    def could_fit(self, num_tokens: int) -> bool:
        """Whether a sequence of so many tokens, alone, fits into the most KV there can ever be."""
        return kv_bytes_for_tokens(self.groups, num_tokens) <= self.kv_bytes

    def refusal(self, request: SequenceRequest) -> Finished | None:
        """The end of a sequence that cannot be run, or None if it can."""
        num_tokens = len(request.prompt_ids) + len(request.output_ids)
        if len(request.prompt_ids) and len(request.output_ids) and num_tokens >= self.max_model_len:
            return Finished(request.sequence_id, FinishReason.LENGTH)
        error = self._error(request, num_tokens)
        if error is not None:
            return error_end(request.sequence_id, error)
        if len(request.output_ids) >= request.sampling.max_tokens:
            return Finished(request.sequence_id, FinishReason.LENGTH)
        return None

    def _error(self, request: SequenceRequest, num_tokens: int) -> MooringError | None:
        if not len(request.prompt_ids):
            return InvalidRequestError("the prompt has no tokens", param="prompt")
        if num_tokens >= self.max_model_len:
            return ContextLengthError(
                f"the prompt has {num_tokens} tokens and the model's context of {self.max_model_len} "
                "must hold at least one more: shorten the prompt",
                param="prompt",
            )
        if max(map(_largest, (request.prompt_ids, request.output_ids))) >= self.vocab_size:
            return InvalidRequestError(
                f"the prompt has a token id beyond the vocabulary of {self.vocab_size}", param="prompt"
            )
        if not self.could_fit(num_tokens + 1):
            return InsufficientMemoryError(
                f"{num_tokens} tokens need more KV than the {format_bytes(self.kv_bytes)} that this replica "
                "may ever hold: raise the memory budget or its KV cap"
            )
        return self._error_of_edits(request.sampling)

    def _error_of_edits(self, sampling: SamplingParams) -> MooringError | None:
        if not all(sampling.bad_words_ids):
            return InvalidRequestError("a bad word has no tokens", param="bad_words")
        for param, token_ids in (
            ("logit_bias", [token_id for token_id, _ in sampling.logit_bias]),
            ("bad_words", list(chain.from_iterable(sampling.bad_words_ids))),
        ):
            if _largest(token_ids) >= self.vocab_size:
                return InvalidRequestError(
                    f"{param} has a token id beyond the vocabulary of {self.vocab_size}", param=param
                )
        return None


def _largest(token_ids: TokenIds | Sequence[int]) -> int:
    """The largest id as an unsigned number, so that a negative one is beyond any vocabulary."""
    return int(np.asarray(token_ids, np.int64).view(np.uint64).max(initial=0))
