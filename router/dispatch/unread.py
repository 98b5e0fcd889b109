"""Tokens of a request that its reader has not taken yet, and when the engine is far enough ahead of it."""

from __future__ import annotations

from engines.api import ChoiceTokens

__all__ = ["Unread"]


class Unread:
    """The tokens that one reader is still to get, in order of arrival.

    Args:
        max_tokens: the backlog with which it is full; each token counts once, and once more for each log-probability
            beside it. What is under way from the engine then comes on top.

    Attributes:
        is_full: whether the engine should wait: true from a full backlog until all of it was taken.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._parts: list[ChoiceTokens] = []
        self._dropped: set[int] = set()
        self._num_tokens = 0
        self.is_full = False

    def put(self, new: ChoiceTokens) -> None:
        """Adds what has come."""
        self._parts.append(new)
        self._num_tokens += len(new.token_ids)
        if new.logprobs is not None:
            self._num_tokens += sum(1 + len(top.token_ids) for top in new.logprobs)
        if self._num_tokens >= self._max_tokens:
            self.is_full = True

    def drop(self, index: int) -> None:
        """Leaves out what is there of a choice, and what is still to come of it."""
        self._dropped.add(index)

    def take(self) -> list[ChoiceTokens]:
        """Returns everything that is there; the reader has caught up then."""
        parts, self._parts = self._parts, []
        self._num_tokens, self.is_full = 0, False
        if self._dropped:
            parts = [part for part in parts if part.index not in self._dropped]
        return parts
