"""When the next request of a deployment is likely to come, from the times of its earlier ones.

Requests that follow each other closely are one burst. If anything about arrivals is regular, it is the time
from the start of one burst to the start of the next: a job that runs every ten minutes, a person's working
day. The last few such intervals are kept; if they are alike, the next burst is expected in a window around
them, and otherwise nothing is expected. Keep-alive and pre-warming from inter-arrival times are those of
"Serverless in the Wild" (Shahrad et al., ATC 2020); a few exact intervals take the place of its histogram of
minutes, since models move in seconds.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from memory_manager.config import PlannerConfig

__all__ = ["BURST_GAP_S", "ArrivalPattern", "ArrivalRate", "ArrivalWindow", "unused_from_s", "wake_at_s"]

BURST_GAP_S = 2.0  # arrivals closer together than this belong to one burst
_NUM_KEPT = 8
_LEAST_UNUSED_S, _MOST_UNUSED_S = 10.0, 60.0
_NUM_NEEDED = 4
_TIMES_LONGER, _NUM_ERRORS = 4, 2.0
_MAX_SPREAD = 0.25  # of the shortest interval; exponential intervals are as much alike once in 700 times


@dataclass(frozen=True, slots=True)
class ArrivalWindow:
    """The time in which the next burst is expected, from ``earliest_s`` to ``latest_s`` on the manager's
    clock."""

    earliest_s: float
    latest_s: float


@dataclass(slots=True)
class ArrivalRate:
    """Requests per second, exponentially decayed: n a second, kept up, give n. Every call is told the time and the
    half-life.

    A longer half-life tells rates apart that are close, a shorter one follows what changes. Both are kept, and the
    longer counts until the shorter differs from it by more than chance lets expect, as in the detection of drift
    (Gama et al., Learning with Drift Detection, 2004).
    """

    _num_recent: float = 0.0
    _num_long: float = 0.0
    _at_s: float = -math.inf

    def note(self, at_s: float, half_life_s: float) -> None:
        """Notes that a request arrived."""
        self._num_recent = self._num_recent * _decay(at_s - self._at_s, half_life_s) + 1.0
        self._num_long = self._num_long * _decay(at_s - self._at_s, _TIMES_LONGER * half_life_s) + 1.0
        self._at_s = at_s

    def per_s(self, now_s: float, half_life_s: float) -> float:
        unit_per_s = math.log(2) / half_life_s
        elapsed_s = now_s - self._at_s
        recent = self._num_recent * _decay(elapsed_s, half_life_s) * unit_per_s
        long = self._num_long * _decay(elapsed_s, _TIMES_LONGER * half_life_s) * unit_per_s / _TIMES_LONGER
        error = math.sqrt((long + unit_per_s) * unit_per_s / 2)
        return long if abs(recent - long) <= _NUM_ERRORS * error else recent


def _decay(elapsed_s: float, half_life_s: float) -> float:
    return math.pow(0.5, elapsed_s / half_life_s)


class ArrivalPattern:
    """The rhythm of one deployment's requests. Every call is told the time, so the object needs no clock."""

    def __init__(self) -> None:
        self._intervals_s: deque[float] = deque(maxlen=_NUM_KEPT)
        self._burst_began_s = -math.inf
        self._last_s = -math.inf
        self._window: ArrivalWindow | None = None

    def note(self, at_s: float) -> None:
        """Notes that a request arrived, never earlier than the one before."""
        if at_s - self._last_s >= BURST_GAP_S:
            if self._burst_began_s > -math.inf:
                self._intervals_s.append(at_s - self._burst_began_s)
            self._burst_began_s = at_s
            self._window = self._expect()
        self._last_s = at_s

    def window(self, now_s: float) -> ArrivalWindow | None:
        """When the next burst is expected; None if there is no rhythm, or if the expected burst did not
        come."""
        window = self._window
        return window if window is not None and now_s <= window.latest_s else None

    @property
    def longest_pause_s(self) -> float:
        """The longest of the last intervals between bursts; 0 if there was but one."""
        return max(self._intervals_s, default=0.0)

    def _expect(self) -> ArrivalWindow | None:
        intervals_s = sorted(self._intervals_s)
        if len(intervals_s) < _NUM_NEEDED:
            return None
        if len(intervals_s) == _NUM_KEPT:  # a burst that was missed and one that came by chance do no harm
            intervals_s = intervals_s[1:-1]
        shortest_s, longest_s = intervals_s[0], intervals_s[-1]
        spread_s = longest_s - shortest_s
        if spread_s > _MAX_SPREAD * shortest_s:
            return None
        margin_s = spread_s / 2 + 0.02 * shortest_s
        return ArrivalWindow(
            self._burst_began_s + shortest_s - margin_s, self._burst_began_s + longest_s + margin_s
        )


def wake_at_s(window: ArrivalWindow, reload_s: float, config: PlannerConfig) -> float:
    """When to begin a wake that is expected to take ``reload_s``, so that it ends before the window
    begins."""
    return window.earliest_s - 1.5 * reload_s - config.prewake_margin_s


def unused_from_s(last_used_s: float, longest_pause_s: float, back_s: float, config: PlannerConfig) -> float:
    """From when on a model that nobody asks for any more is taken for unused: after a pause that is much longer than
    its own, up to a limit, and than bringing it back takes."""
    pause_s = min(config.unused_pauses * longest_pause_s, _MOST_UNUSED_S)
    return last_used_s + max(_LEAST_UNUSED_S, back_s, pause_s)
