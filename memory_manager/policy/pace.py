"""How fast a model answers, as its slack has to know it: running means, each new figure counting a little."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Pace"]

_NEW_SHARE = 0.1
_UNMEASURED_OUTPUT_TOKENS = 128.0


@dataclass(slots=True)
class Pace:
    """Running means of one model.

    Attributes:
        first_token_s: seconds from a request's arrival, or the model's if that is later, to the first token.
        token_s: seconds of each token after the first.
        output_tokens: tokens of an output.
    """

    first_token_s: float = 0.03
    token_s: float = 0.0
    output_tokens: float = _UNMEASURED_OUTPUT_TOKENS

    def note_first_token(self, seconds: float, target_s: float) -> None:
        """Notes a first token. Half of the target is the most that counts: what took longer had to wait."""
        self.first_token_s += _NEW_SHARE * (min(seconds, 0.5 * target_s) - self.first_token_s)

    def note_end(self, num_tokens: int, num_timed: int, seconds: float) -> None:
        """Notes the end of an output, of whose tokens so many took so many seconds."""
        self.output_tokens += _NEW_SHARE * (num_tokens - self.output_tokens)
        if num_timed > 0:
            self.token_s += _NEW_SHARE * (seconds / num_timed - self.token_s)
