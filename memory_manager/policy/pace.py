"""How fast a model answers, as its slack has to know it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Pace"]

_NEW_SHARE = 0.1
_MEDIAN_STEP = 1.02
_UNMEASURED_OUTPUT_TOKENS = 128.0


@dataclass(slots=True)
class Pace:
    """How one model answers.

    Attributes:
        first_token_s: seconds from a request's arrival, or the model's if that is later, to the first token; a
            running mean.
        token_s: seconds from one token of a request to its next; a running median, so neither a pause nor prompts of
            others that are computed between count by their length; 0 if there was none yet.
        output_tokens: tokens of an output; a running mean.
    """

    first_token_s: float = 0.03
    token_s: float = 0.0
    output_tokens: float = _UNMEASURED_OUTPUT_TOKENS

    def note_first_token(self, seconds: float, target_s: float) -> None:
        """Notes a first token. Half of the target is the most that counts: what took longer had to wait."""
        self.first_token_s += _NEW_SHARE * (min(seconds, 0.5 * target_s) - self.first_token_s)

    def note_tokens(self, num_tokens: int, seconds: float) -> None:
        """Notes that a request took so long for so many tokens after another one.

        The median is found by a small step up or down for each figure (Robbins and Monro, *A Stochastic Approximation
        Method*, 1951).
        """
        token_s = seconds / num_tokens
        if not self.token_s:
            self.token_s = token_s
        elif token_s > self.token_s:
            self.token_s = min(token_s, self.token_s * _MEDIAN_STEP)
        else:
            self.token_s = max(token_s, self.token_s / _MEDIAN_STEP)

    def note_end(self, num_tokens: int) -> None:
        """Notes the end of an output."""
        self.output_tokens += _NEW_SHARE * (num_tokens - self.output_tokens)
