"""Stakes of a model: its requests, how long each can wait, and what its coming or its absence means to them."""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Horizon", "Standing", "comes_before", "guard_s", "horizon_s", "is_in_time", "num_lost_soon"]

_MOST_TURNS = 8
_LEAST_GUARD_S, _GUARD_SHARE = 0.05, 0.25  # the latter of the time to come


class Horizon(NamedTuple):
    """The time over which a change of the set is judged.

    Attributes:
        turn_s: seconds that each model has at least while others wait for its place.
        lasts_s: seconds over which the requests to come count.
    """

    turn_s: float
    lasts_s: float


class Standing(NamedTuple):
    """A model, as far as the choice turns on it.

    Attributes:
        num_bytes: bytes of the device that its presence takes.
        is_present: it is on the device, or on its way there.
        may_leave: it is there, with nothing under way, and nothing keeps it.
        may_come: it can be brought, and would be served.
        back_s: seconds to bring it, or to bring it back if it leaves.
        slacks_s: in ascending order, of the requests that wait for it or run on it: seconds for which
            each can be left alone and still meet its targets; below 0 for those that cannot meet them any more.
        rate_per_s: requests expected per second.
        num_expected: requests that a rhythm lets expect soon, beside those of the rate.
        fresh_slack_s: slack of a request for it that has just come.
        weight: that of each of its requests.
        waited_s: seconds for which the oldest of the requests that wait for it has waited since it was there.
        is_settled: it has been there for as long as it stays at least.
        is_unused: no request has run on it for longer than its own pauses.
        is_guest: it came for late requests alone, a short while ago.
    """

    name: str
    num_bytes: int
    is_present: bool
    may_leave: bool
    may_come: bool
    back_s: float
    slacks_s: tuple[float, ...]
    rate_per_s: float
    num_expected: float = 0.0
    fresh_slack_s: float = 1.0
    weight: float = 1.0
    waited_s: float = 0.0
    is_settled: bool = True
    is_unused: bool = False
    is_guest: bool = False

    @property
    def is_wanted(self) -> bool:
        if not self.may_come or self.is_present:
            return False
        return len(self.slacks_s) > 0 or self.num_expected > 0 or self.num_lost_soon >= 1

    @property
    def horizon(self) -> Horizon:
        """The time over which its coming is judged. If every request that finds it away is lost, as many seconds
        count as requests for it have waited already, up to 8 turns: a change is due once holding the set has cost as
        much as the change does (the break-even rule of ski rental; Karlin et al., Competitive Snoopy Caching,
        1988)."""
        turn_s = horizon_s(self.back_s)
        if self.share_lost < 1:
            return Horizon(turn_s, turn_s)
        num_turns = max(1.0, min(_MOST_TURNS, self.waited_s / turn_s))
        return Horizon(turn_s, turn_s * 2.0 ** math.floor(math.log2(num_turns)))

    @property
    def num_lost_soon(self) -> float:
        """Requests to come that are expected to miss their targets if it stays away."""
        return num_lost_soon(self.rate_per_s, self.back_s, self.fresh_slack_s)

    @property
    def share_lost(self) -> float:
        """Share of its requests that find it away and miss their targets by that."""
        return _share_lost(self.back_s, self.fresh_slack_s)

    @property
    def num_in_time(self) -> int:
        """Requests that wait and that its coming saves, as far as the error of its time to come lets tell."""
        least_s = max(0.0, self.back_s - guard_s(self.back_s))
        return len(self.slacks_s) - bisect.bisect_left(self.slacks_s, least_s)

    @property
    def least_slack_s(self) -> float:
        """Least slack of the requests that its coming saves; ``inf`` if there are none."""
        num_in_time = self.num_in_time
        return self.slacks_s[-num_in_time] if num_in_time else math.inf

    def gain(self, horizon_s: float) -> float:
        """Requests that meet their targets because it comes; those that are late already count nothing.

        Args:
            horizon_s: seconds over which requests to come count.
        """
        num_to_come = self.rate_per_s * (horizon_s - self.back_s) + self.num_expected
        return self.weight * (self.num_in_time + self.share_lost * num_to_come)


def comes_before(standing: Standing) -> tuple[float, float, float, str]:
    """Sort key of those who are wanted: what each gains in time for its bytes, most first; whose slack is least; who
    waits longest."""
    density = standing.gain(horizon_s(standing.back_s)) / max(1, standing.num_bytes)
    return -density, standing.least_slack_s, -standing.waited_s, standing.name


def is_in_time(slacks_s: Sequence[float]) -> bool:
    """Whether any of these requests can still meet its targets; ``slacks_s`` are in ascending order."""
    return bool(slacks_s) and slacks_s[-1] >= 0


@functools.lru_cache(maxsize=4096)
def horizon_s(back_s: float) -> float:
    """Seconds of a turn: 10 times what a change takes, at least 1 s, as a power of 2, so that many models share
    one."""
    return 2.0 ** math.ceil(math.log2(max(1.0, 10 * back_s)))


def num_lost_soon(rate_per_s: float, back_s: float, fresh_slack_s: float) -> float:
    """Requests to come that are expected to miss their targets while their model is away; see ``Standing``."""
    return rate_per_s * _share_lost(back_s, fresh_slack_s) * horizon_s(back_s)


def _share_lost(back_s: float, fresh_slack_s: float) -> float:
    # Without min and max: it is asked for several times for each that wants to come.
    share = back_s / (fresh_slack_s if fresh_slack_s > 1e-3 else 1e-3)
    return share if share < 1.0 else 1.0


def guard_s(back_s: float) -> float:
    """Error of the seconds that a model takes to come, with those that pass before somebody who leaves has left."""
    return _LEAST_GUARD_S + _GUARD_SHARE * back_s
