"""When a request will have its first token: what is ahead of it, what brings its model, and its own prompt; and how
far such predictions were off."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Ahead", "PredictionError", "RunningQuantile", "first_token_s"]

_LEAST_STEP = 0.05
_FADE = 0.005
_CAUTIOUS_SHARE = 0.8


class Ahead(NamedTuple):
    """Times that pass before a request has its first token.

    Attributes:
        comes_in_s: seconds until its model is there; 0 if it is.
        num_ends: of requests, before there is room for it.
        end_interval_s: seconds from one of those to the next.
        step_left_s: seconds that the running step still takes.
        prefill_s: seconds of the steps that compute what is ahead, and its own prompt at last.
    """

    comes_in_s: float
    num_ends: int
    end_interval_s: float
    step_left_s: float
    prefill_s: float


def first_token_s(ahead: Ahead) -> float:
    """Seconds from now to the first token."""
    room_s = ahead.num_ends * ahead.end_interval_s
    return max(ahead.comes_in_s, room_s, ahead.step_left_s) + ahead.prefill_s


@dataclass(slots=True)
class RunningQuantile:
    """A running quantile of figures, found by a step up or down for each, smaller with each at first (Robbins and
    Monro, *A Stochastic Approximation Method*, 1951).

    Attributes:
        share: of the figures that are to be below ``value``.
        value: 0 until there were any.
    """

    share: float
    value: float = 0.0
    _num_noted: int = 0

    def note(self, figure: float) -> None:
        self._num_noted += 1
        step = max(_LEAST_STEP, 1 / self._num_noted)
        self.value += step * (self.share if figure > self.value else self.share - 1)


class PredictionError:
    """How many times as long as predicted first tokens take: half of them at most, and most of them at most.

    What has to wait for room is told apart from what has not: only the former is likely to be overtaken.
    """

    def __init__(self) -> None:
        self._half = (RunningQuantile(0.5), RunningQuantile(0.5))
        self._most = (RunningQuantile(_CAUTIOUS_SHARE), RunningQuantile(_CAUTIOUS_SHARE))

    def likely_s(self, predicted_s: float, *, waits_for_room: bool) -> float:
        """Seconds within which half of the requests like this one have their first token."""
        return predicted_s * math.exp(self._half[waits_for_room].value)

    def cautious_s(self, predicted_s: float, *, waits_for_room: bool) -> float:
        """Seconds within which most of the requests like this one have their first token."""
        return predicted_s * math.exp(self._most[waits_for_room].value)

    def note(self, predicted_s: float, seconds: float, *, waits_for_room: bool) -> None:
        """Notes what a prediction came to.

        Args:
            predicted_s: as ``first_token_s`` gave it.
            seconds: to its first token; or by now, if it is too late for it already.
        """
        ratio = math.log(max(seconds, 1e-6) / max(predicted_s, 1e-6))
        self._half[waits_for_room].note(ratio)
        self._most[waits_for_room].note(ratio)

    def note_kept_out(self, *, waits_for_room: bool) -> None:
        """Notes that a request was refused, or put behind others, by caution alone: as nothing is learned of it,
        caution fades a little, so that no mistake lasts."""
        most = self._most[waits_for_room]
        most.value = max(min(most.value, 0.0), most.value - _FADE)
