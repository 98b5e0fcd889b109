"""How many requests meet the targets of their SLO class, by tenant, class and model, in sliding windows.

Counted once for each request, at its end. Nothing here reads a clock: whoever notes or reads gives the time.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from mooring.slo import BEST_EFFORT, SLOClass
from router.telemetry.waits import Spent

__all__ = ["MISSES_KEPT", "WINDOWS_S", "Attainment", "Attainments", "Judged", "Miss", "SlidingCount"]

WINDOWS_S: Mapping[str, float] = MappingProxyType({"1m": 60.0, "1h": 3600.0})
"""The windows' lengths in seconds, by their names."""

MISSES_KEPT = 20
"""How many of the last misses are remembered of each tenant, class and model."""

_NUM_BUCKETS = 60
_MAX_ENTRIES = 1024


class Judged(NamedTuple):
    """Requests that have ended, by what became of their targets."""

    num_met: int = 0
    num_missed: int = 0

    @property
    def num_requests(self) -> int:
        return self.num_met + self.num_missed

    @property
    def attained(self) -> float | None:
        """Share that met its targets; None if there was no request."""
        return self.num_met / self.num_requests if self.num_requests else None

    def budget_left(self, goal: float) -> float:
        """Share that is left of the misses that a goal allows for so many requests: 1 if none was missed, below 0 if
        more were than may be. A goal of 1 allows none: the first one leaves 0."""
        if not self.num_missed:
            return 1.0
        num_allowed = round((1 - goal) * self.num_requests, 9)  # what is just used up is so to the last bit
        return 1 - self.num_missed / num_allowed if num_allowed else 0.0


class Miss(NamedTuple):
    """A request that missed its targets, failed or was refused.

    Attributes:
        at_s: when it ended, in seconds of the Unix epoch.
        ttft_s: seconds to its first token, of several choices to that of the slowest; None if one got none.
        tpot_s: mean seconds of each further token of the slowest choice; None if there was none to wait for.
        spent: where its time went.
    """

    request_id: str
    at_s: float
    ttft_s: float | None
    tpot_s: float | None
    spent: Spent


class SlidingCount:
    """Requests of the last seconds, in buckets: those of the present one and of as many before it as make up the
    window, so that the oldest go a bucket at a time.

    Args:
        span_s: length of the window.
    """

    def __init__(self, span_s: float) -> None:
        self._bucket_s = span_s / _NUM_BUCKETS
        self._newest = 0  # number of the present bucket; each is at its number modulo how many there are
        self._met = [0] * _NUM_BUCKETS
        self._missed = [0] * _NUM_BUCKETS
        self._num_met = self._num_missed = 0  # of all buckets

    def note(self, is_met: bool, now_s: float) -> None:
        """Counts a request that ends now. ``now_s``: of a clock that starts at 0 or later and never goes back."""
        self._advance(now_s)
        place = self._newest % _NUM_BUCKETS
        if is_met:
            self._met[place] += 1
            self._num_met += 1
        else:
            self._missed[place] += 1
            self._num_missed += 1

    def count(self, now_s: float) -> Judged:
        """The requests of the window that ends now. ``now_s``: of the same clock as for ``note``."""
        self._advance(now_s)
        return Judged(self._num_met, self._num_missed)

    def _advance(self, now_s: float) -> None:
        """Makes the bucket of now the present one, and forgets those that are too old by then."""
        number = math.floor(now_s / self._bucket_s)
        # However long ago the last was, no place is emptied twice.
        for gone in range(max(self._newest, number - _NUM_BUCKETS) + 1, number + 1):
            place = gone % _NUM_BUCKETS
            self._num_met -= self._met[place]
            self._num_missed -= self._missed[place]
            self._met[place] = self._missed[place] = 0
        self._newest = max(self._newest, number)


@dataclass(slots=True)
class Attainment:
    """The requests of one tenant, in one class, to one model.

    Attributes:
        slo_class: name of the class.
        goal: of the class, when it last had a request; None for best effort, which promises nothing.
        total: since the first of them.
        windows: by the names of ``WINDOWS_S``.
        misses: the last of those that missed, oldest first.
    """

    tenant: str
    slo_class: str
    model: str
    goal: float | None = None
    total: Judged = field(default_factory=Judged)
    windows: Mapping[str, SlidingCount] = field(
        default_factory=lambda: {name: SlidingCount(span_s) for name, span_s in WINDOWS_S.items()}
    )
    misses: deque[Miss] = field(default_factory=lambda: deque(maxlen=MISSES_KEPT))


class Attainments:
    """The attainment of every tenant, class and model that has had requests; at most ``max_entries`` of them, those
    that have been idle for longest going first."""

    def __init__(self, max_entries: int = _MAX_ENTRIES) -> None:
        self._max_entries = max_entries
        self._entries: OrderedDict[tuple[str, str, str], Attainment] = OrderedDict()

    def note(
        self, tenant: str, slo_class: SLOClass | None, model: str, miss: Miss | None, now_s: float
    ) -> None:
        """Counts a request that has ended.

        Args:
            slo_class: of the request; None for best effort.
            miss: None if it met its targets.
            now_s: as in ``SlidingCount.note``.
        """
        name = BEST_EFFORT if slo_class is None else slo_class.name
        key = (tenant, name, model)
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = Attainment(*key)
            if len(self._entries) > self._max_entries:
                self._entries.popitem(last=False)
        self._entries.move_to_end(key)
        entry.goal = None if slo_class is None else slo_class.goal
        is_met = miss is None
        met, missed = entry.total
        entry.total = Judged(met + is_met, missed + (not is_met))
        for window in entry.windows.values():
            window.note(is_met, now_s)
        if miss is not None:
            entry.misses.append(miss)

    def entries(self) -> Sequence[Attainment]:
        """All of them, by tenant, class and model."""
        return [self._entries[key] for key in sorted(self._entries)]
