"""When a request will have its first token: what is ahead of it, what brings its model, and its own prompt; and how
far such predictions were off."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from typing import NamedTuple

__all__ = ["Ahead", "PredictionError", "RecentQuantiles", "first_token_s"]

_NUM_RECENT = 32
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


class RecentQuantiles:
    """Quantiles of the figures that were noted last, at most 32."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []

    def note(self, figure: float) -> None:
        if len(self._recent) == _NUM_RECENT:
            self.forget_oldest()
        self._recent.append(figure)
        insort(self._sorted, figure)

    def forget_oldest(self) -> None:
        """Forgets the figure that was noted first; does nothing without any."""
        if self._recent:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]

    def value(self, share: float) -> float:
        """The least figure that so large a share of them is not above; 0 without any."""
        return self._sorted[math.ceil(share * len(self._sorted)) - 1] if self._sorted else 0.0


class PredictionError:
    """How far predictions of first tokens were off lately, for half of the requests and for most of them.

    What need not wait for room is off by seconds, since it waits for the turns of other models; what has to wait is
    off by a factor, since others overtake it all the while.
    """

    def __init__(self) -> None:
        self._seconds = RecentQuantiles()
        self._ratios = RecentQuantiles()  # logarithms

    def likely_s(self, predicted_s: float, *, waits_for_room: bool) -> float:
        """Seconds within which half of the requests like this one have their first token."""
        return self._within_s(0.5, predicted_s, waits_for_room)

    def cautious_s(self, predicted_s: float, *, waits_for_room: bool) -> float:
        """Seconds within which most of the requests like this one have their first token."""
        return self._within_s(_CAUTIOUS_SHARE, predicted_s, waits_for_room)

    def note(self, predicted_s: float, seconds: float, *, waits_for_room: bool) -> None:
        """Notes what a prediction came to.

        Args:
            predicted_s: as ``first_token_s`` gave it.
            seconds: to its first token; or by now, if it is too late for it already.
        """
        if waits_for_room:
            self._ratios.note(math.log(max(seconds, 1e-6) / max(predicted_s, 1e-6)))
        else:
            self._seconds.note(seconds - predicted_s)

    def note_kept_out(self, *, waits_for_room: bool) -> None:
        """Notes that a request was refused, or put behind others, by caution alone: as nothing is learned of it, what
        was learned first is forgotten, so that no mistake lasts."""
        (self._ratios if waits_for_room else self._seconds).forget_oldest()

    def _within_s(self, share: float, predicted_s: float, waits_for_room: bool) -> float:
        if waits_for_room:
            return predicted_s * math.exp(self._ratios.value(share))
        return max(0.0, predicted_s + self._seconds.value(share))
