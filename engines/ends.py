"""Ends of sequences that every engine tells alike."""

from __future__ import annotations

from engines.api import REPLICA_UNLOADED, Finished, FinishReason, TokenIds
from mooring.errors import ContextLengthError, InvalidRequestError, ModelUnavailableError, MooringError

__all__ = ["error_end", "prompt_error", "unloaded_error"]


def error_end(sequence_id: int, error: MooringError) -> Finished:
    """The end of a sequence by an error."""
    return Finished(sequence_id, FinishReason.ERROR, error_code=error.code, error_message=error.message)


def unloaded_error(replica_id: str) -> MooringError:
    """The error of sequences whose replica is not loaded."""
    return ModelUnavailableError(f"replica {replica_id} is not loaded here", code=REPLICA_UNLOADED)


def prompt_error(prompt_ids: TokenIds, max_model_len: int) -> InvalidRequestError | None:
    """The error of a prompt that has no tokens, or so many that no output fits; None if it is neither.

    Args:
        max_model_len: longest prompt plus output, in tokens.
    """
    if not len(prompt_ids):
        return InvalidRequestError("the prompt has no tokens", param="prompt")
    if len(prompt_ids) >= max_model_len:
        return ContextLengthError(
            f"a prompt of {len(prompt_ids)} tokens leaves no room for output in {max_model_len}"
        )
    return None
