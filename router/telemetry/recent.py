"""Figures of the last seconds: how many tokens and requests, how long to the first token, how busy the devices are.

Nothing here reads a clock: whoever notes or reads gives the time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Rates", "Recent", "Totals"]

RATES_OVER_S = 10.0
BUSY_OVER_S = 5.0
TTFT_OVER_S = 60.0
_MAX_FIRST = 1024


class Totals(NamedTuple):
    """Counts of the doors, which only grow."""

    num_tokens: int = 0
    num_ended: int = 0
    num_refused: int = 0


class Recent:
    """Counts what the doors do."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self.num_ended = 0
        self.num_refused = 0
        self._first: deque[tuple[float, float]] = deque(maxlen=_MAX_FIRST)

    def note_first(self, ttft_s: float, now_s: float) -> None:
        """Notes that a request got its first token now, so long after it came."""
        self._first.append((now_s, ttft_s))

    def totals(self) -> Totals:
        return Totals(self.num_tokens, self.num_ended, self.num_refused)

    def ttft_s(self, now_s: float, *shares: float) -> list[float | None]:
        """Seconds to the first token that these shares of the requests of the last minute stayed within, of the last
        1,024 at most; None if there was none."""
        first = self._first
        while first and first[0][0] < now_s - TTFT_OVER_S:
            first.popleft()
        if not first:
            return [None for _ in shares]
        ranked = sorted(ttft_s for _, ttft_s in first)
        return [ranked[min(len(ranked) - 1, int(share * len(ranked)))] for share in shares]


@dataclass(frozen=True, slots=True)
class _Sample:
    at_s: float
    totals: Totals
    busy_s: Mapping[str, float]


class Rates:
    """Rates of what grows, from a sample a second."""

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque(maxlen=int(RATES_OVER_S) + 1)

    def note(self, at_s: float, totals: Totals, busy_s: Mapping[str, float]) -> None:
        """Takes a sample.

        Args:
            busy_s: seconds of steps so far, by device.
        """
        self._samples.append(_Sample(at_s, totals, dict(busy_s)))

    def per_s(self, now_s: float, totals: Totals) -> tuple[float, ...]:
        """Growth of each of ``totals`` in a second, over the last ten; zeros before the first sample."""
        oldest = self._oldest(now_s, RATES_OVER_S)
        if oldest is None or oldest.at_s >= now_s:
            return (0.0,) * len(totals)
        return tuple(
            (new - old) / (now_s - oldest.at_s) for new, old in zip(totals, oldest.totals, strict=True)
        )

    def busy_shares(self) -> dict[str, float]:
        """Share of the last five seconds in which a step ran, by device, 0 to 1; of several workers' steps at a time
        each counts. Empty before there are two samples."""
        if len(self._samples) < 2:
            return {}
        newest = self._samples[-1]
        oldest = self._oldest(newest.at_s, BUSY_OVER_S)
        if oldest is None or oldest.at_s >= newest.at_s:
            return {}
        span_s = newest.at_s - oldest.at_s
        return {
            device: min(1.0, max(0.0, (busy_s - oldest.busy_s[device]) / span_s))
            for device, busy_s in newest.busy_s.items()
            if device in oldest.busy_s
        }

    def _oldest(self, now_s: float, over_s: float) -> _Sample | None:
        """The oldest sample of the last ``over_s``, or the newest before that."""
        chosen = None
        for sample in self._samples:
            if chosen is None or sample.at_s <= now_s - over_s:
                chosen = sample
        return chosen
