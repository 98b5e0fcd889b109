"""How fast a model answers, as its slack has to know it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from memory_manager.policy.kv_forecast import UNMEASURED_OUTPUT_TOKENS, mean_with

__all__ = ["NUM_TIMED_AT_ONCE", "Pace"]

NUM_TIMED_AT_ONCE = 8
"""Tokens of a stretch that is timed: single ones may come in one message."""

_NEW_SHARE = 0.1
_LEAST_STEP = 0.05


@dataclass(slots=True)
class Pace:
    """How one model answers.

    Attributes:
        first_token_s: seconds from a request's arrival, or the model's if that is later, to the first token; a
            running mean.
        token_s: seconds from one token of a request to its next, over stretches of a few tokens; a running median, so
            no pause counts by its length; 0 if there was none yet.
        output_tokens: tokens of an output; a running mean over those that have ended, of which there were
            ``num_ended``.
    """

    first_token_s: float = 0.03
    token_s: float = 0.0
    output_tokens: float = UNMEASURED_OUTPUT_TOKENS
    num_ended: int = 0
    _num_noted: int = 0
    _noted_at_s: float = -math.inf

    def note_first_token(self, seconds: float, target_s: float) -> None:
        """Notes a first token. Half of the target is the most that counts: what took longer had to wait."""
        self.first_token_s += _NEW_SHARE * (min(seconds, 0.5 * target_s) - self.first_token_s)

    def note_tokens(self, num_tokens: int, began_s: float, now_s: float) -> None:
        """Notes that a request got so many tokens since a moment at which it had got another.

        Of stretches that overlap one counts: a pause of all requests of a model is one figure. The median is found by
        a step up or down for each figure, smaller with each at first (Robbins and Monro, *A Stochastic Approximation
        Method*, 1951).
        """
        if began_s < self._noted_at_s:
            return
        self._noted_at_s = now_s
        self._num_noted += 1
        token_s, step = (now_s - began_s) / num_tokens, 1 + max(_LEAST_STEP, 4 / self._num_noted)
        if not self.token_s:
            self.token_s = token_s
        elif token_s > self.token_s:
            self.token_s = min(token_s, self.token_s * step)
        else:
            self.token_s = max(token_s, self.token_s / step)

    def note_end(self, num_tokens: int) -> None:
        """Notes the end of an output."""
        self.output_tokens = mean_with(self.output_tokens, self.num_ended, num_tokens)
        self.num_ended += 1
