"""Which models are to be on a device: what a change of the set gains is weighed against what it costs.

A request has slack: for how long it can be left alone and still meet its targets. A model that leaves is away until
somebody wants it back: that takes a share of the slack of each of its requests, and so many of them are taken for
lost; all of them if sequences wait for KV, and take theirs. Of the requests that are still to come a share is lost,
which grows with the time to bring the model back. A model that comes saves the requests that wait for it and whose
slack is longer than the time that it takes to come, and the same share of those to come (``stakes``).

Rates are estimates. A set changes only for a gain that exceeds the cost by ``num_errors`` standard errors of what
rates contribute, so where nothing is known for certain the set is held, and the outcome is that of a fixed partition.
A change that costs running requests a pause is put off until the last moment at which it still saves who waits:
meanwhile more come that it serves as well.

Late requests save nothing: they come in where it costs nobody anything, to the room of models that stand unused
(``Standing.is_unused``), and once they have waited for ``starve_after_s`` to whatever room is cheapest. What came for
late requests alone is a guest for a while: only requests that run on it in time hold it, and those who were there
before come back in its place even before they are asked for.
"""

from __future__ import annotations

import bisect
import enum
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from memory_manager.config import PlannerConfig
from memory_manager.policy.stakes import Horizon, Standing, comes_before, guard_s, is_in_time

__all__ = [
    "Among",
    "Choice",
    "Chooser",
    "Exchange",
    "Lack",
    "choose",
]

# Shorter absences follow each other, and what is paused again and again has no slack left.
_LEAST_AWAY_S = 2.0
_SHORTEST = Horizon(1.0, 1.0)
# What is due sooner is due now: added to a clock, less would not change it.
_SOONEST_S = 1e-6

Lack = Callable[[Collection[str]], int]
"""Bytes that are still missing if the models of these names leave; 0 or less if none are. What one frees may depend
on who else leaves."""


class Exchange(NamedTuple):
    """A change of the set: one model comes, and others leave for it.

    Attributes:
        come: name of the model.
        leave: names of the models that leave; none if there is room.
        gain: requests that are expected to meet their targets because it comes.
        loss: requests that are expected to miss them because others leave.
        switching: requests that others miss while weights are moved.
        margin: error of the estimates, by which the gain has to exceed both.
        as_guest: it comes for late requests alone.
        due_in_s: seconds for which it can be put off without anybody missing a target.
    """

    come: str
    leave: tuple[str, ...] = ()
    gain: float = 0.0
    loss: float = 0.0
    switching: float = 0.0
    margin: float = 0.0
    as_guest: bool = False
    due_in_s: float = 0.0

    @property
    def net(self) -> float:
        return self.gain - self.loss - self.switching - self.margin


@dataclass(frozen=True, slots=True)
class Choice:
    """Changes of the set that are worth while.

    Attributes:
        exchanges: to be done now.
        due_in_s: seconds until the choice is to be made again, if nothing happens before; ``inf`` for never.
    """

    exchanges: tuple[Exchange, ...]
    due_in_s: float = math.inf


def choose(
    standings: Sequence[Standing], room_bytes: int, config: PlannerConfig, *, is_short_of_kv: bool = False
) -> Choice:
    """The changes that are worth their cost.

    Args:
        room_bytes: free beside all that are present.
        is_short_of_kv: see ``Chooser``.
    """
    wanted = sorted((each for each in standings if each.is_wanted), key=comes_before)
    if not wanted:
        return Choice(())
    num_away = sum(not each.is_present and is_in_time(each.slacks_s) for each in standings)
    chooser = Chooser(standings, config, num_away=num_away, is_short_of_kv=is_short_of_kv)
    num_bytes = {each.name: each.num_bytes for each in standings}
    exchanges: list[Exchange] = []
    due_in_s = config.reweigh_s
    for standing in wanted:
        missing_bytes = standing.num_bytes - room_bytes
        exchange = chooser.exchange(standing, _lack(missing_bytes, num_bytes))
        if exchange is None:
            continue
        if exchange.due_in_s > 0:
            due_in_s = min(due_in_s, exchange.due_in_s)
            continue
        exchanges.append(exchange)
        room_bytes += chooser.take(exchange) - standing.num_bytes
    return Choice(tuple(exchanges), due_in_s if len(exchanges) < len(wanted) else math.inf)


def _lack(missing_bytes: int, num_bytes: Mapping[str, int]) -> Lack:
    return lambda names: missing_bytes - sum(num_bytes[each] for each in names)


class Among(enum.IntEnum):  # it is part of keys: the hash of a mere Enum is slow
    """The residents that are asked to make room."""

    ALL = enum.auto()
    SETTLED = enum.auto()
    UNUSED = enum.auto()

    def includes(self, standing: Standing) -> bool:
        match self:
            case Among.ALL:
                return True
            case Among.SETTLED:
                return standing.is_settled
        return standing.is_unused


@dataclass(frozen=True, slots=True)
class _Victims:
    """Residents that leave together, with what that costs whoever comes for it.

    Attributes:
        loss: requests that are expected to miss their targets because they leave.
        least_cost: what has to be gained at least, whoever comes, for that to be worth while.
        variance: of what their rates let expect; scaled to the horizon where they are weighed.
        back_s: seconds to bring all of them back, one after the other.
        all_guests: each of them is a guest.
    """

    residents: tuple[Standing, ...]
    loss: float
    least_cost: float
    variance: float
    back_s: float
    all_guests: bool

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(each.name for each in self.residents)


def _counts_more(resident: Standing, standing: Standing) -> bool:
    """Whether a resident is in use whose requests are of higher weight."""
    return resident.weight > standing.weight and is_in_time(resident.slacks_s)


class Chooser:
    """Weighs models that want to come against those that are there, one after the other.

    Args:
        standings: all of a device; those that may leave are weighed.
        num_away: models that have requests in time and are away, the one that comes among them.
        is_short_of_kv: sequences wait there for KV: they take that of whoever leaves.
    """

    def __init__(
        self,
        standings: Sequence[Standing],
        config: PlannerConfig,
        *,
        num_away: int = 1,
        is_short_of_kv: bool = False,
    ) -> None:
        self._config = config
        self._num_away = max(1, num_away)
        self._is_short_of_kv = is_short_of_kv
        self._residents = residents = [each for each in standings if each.may_leave]
        self._index = {each.name: index for index, each in enumerate(residents)}
        self._present_rate_per_s = sum(each.weight * each.rate_per_s for each in standings if each.is_present)
        self._gone: set[int] = set()
        num = np.array([len(each.slacks_s) for each in residents], np.int64)
        self._owner = np.repeat(np.arange(len(num)), num)
        self._slacks_s = np.array([slack_s for each in residents for slack_s in each.slacks_s], np.float64)
        self._back_s = np.array([each.back_s for each in residents])
        self._rate_per_s = np.array([each.rate_per_s for each in residents])
        self._num_expected = np.array([each.num_expected for each in residents])
        self._share_lost = np.array([each.share_lost for each in residents])
        self._weight = np.array([each.weight for each in residents])
        # A rate that decays exponentially, of Poisson arrivals, has this variance for each request per second; one
        # request is taken for seen of each model, so that none counts as known for never being asked for.
        self._unit_per_s = math.log(2) / config.rate_half_life_s
        variance = (self._weight * self._share_lost) ** 2 * (self._rate_per_s + self._unit_per_s)
        self._variance: list[float] = variance.tolist()
        self._is_guest = np.array([each.is_guest for each in residents], np.bool_)
        self._losses: dict[Horizon, list[float]] = {}
        self._orders: dict[tuple[float, Among], list[int]] = {}
        self._found: dict[tuple[Horizon, Among, Lack], _Victims | None] = {}

    def exchange(self, standing: Standing, lack: Lack) -> Exchange | None:
        """The exchange that brings a model; None if none is worth while."""
        horizon = standing.horizon
        is_asked_for = len(standing.slacks_s) > 0 or standing.num_expected > 0
        victims = self._cheapest(horizon, lack, Among.SETTLED)
        if victims is None:
            return None
        if not victims.residents:  # there is room
            return Exchange(standing.name, gain=standing.gain(horizon.lasts_s)) if is_asked_for else None
        # What is merely expected takes no room that is in use, but that of guests.
        is_expected = not len(standing.slacks_s) and not victims.all_guests
        if is_expected and (not is_asked_for or any(each.slacks_s for each in victims.residents)):
            return None
        gain = standing.gain(horizon.lasts_s)
        if gain > victims.least_cost and (
            standing.num_in_time or not any(_counts_more(each, standing) for each in victims.residents)
        ):
            weighed = self._weigh(standing, victims, horizon, gain)
            if weighed.net > 0:
                return weighed._replace(due_in_s=self._due_in_s(standing, victims))
        if not len(standing.slacks_s):
            return None
        losers = self._cheapest(horizon, lack, Among.UNUSED)
        if losers is None and standing.waited_s >= self._config.starve_after_s:
            order = self._order(horizon.turn_s, Among.SETTLED)
            order = [each for each in order if not _counts_more(self._residents[each], standing)]
            losers = self._victims(self._least(order, self._losses_of(horizon), lack), horizon)
        if losers is None:
            return None
        return Exchange(standing.name, losers.names, loss=losers.loss, as_guest=True)

    def take(self, exchange: Exchange) -> int:
        """Counts those who leave as gone; returns the bytes that they free."""
        return sum(self.take_away(name) for name in exchange.leave)

    def take_away(self, name: str) -> int:
        """Counts a model as gone, if it is one of those that may leave; returns the bytes that it frees."""
        index = self._index.get(name)
        if index is None or index in self._gone:
            return 0
        self._gone.add(index)
        self._orders.clear()
        self._found.clear()
        return self._residents[index].num_bytes

    def cheapest(
        self, lack: Lack, among: Among, names: Collection[str] | None = None
    ) -> tuple[str, ...] | None:
        """Names of those whose leaving for a while costs least, whatever it is; None if all do not free enough.

        Args:
            names: they alone are asked.
        """
        order = self._order(_SHORTEST.turn_s, among)
        if names is not None:
            order = [each for each in order if self._residents[each].name in names]
        victims = self._least(order, self._losses_of(_SHORTEST), lack)
        return None if victims is None else tuple(self._names(victims))

    def in_order(self) -> list[str]:
        """All that may leave, the one first that loses least for what it frees."""
        return self._names(self._order(_SHORTEST.turn_s, Among.ALL))

    def _weigh(self, standing: Standing, victims: _Victims, horizon: Horizon, gain: float) -> Exchange:
        # One request, for what saves nobody who waits or is awaited: its gain is an estimate alone.
        is_certain = standing.num_in_time > 0 or standing.num_expected > 0
        least_gain = 0.0 if is_certain else standing.weight
        if victims.all_guests:
            return Exchange(standing.name, victims.names, gain, victims.loss, margin=least_gain)
        share_lost = standing.share_lost
        variance = (standing.weight * share_lost) ** 2 * (standing.rate_per_s + self._unit_per_s)
        switching = (
            self._present_rate_per_s
            * (standing.back_s + victims.back_s)
            * (self._config.move_slows + share_lost)
        )
        return Exchange(
            standing.name,
            victims.names,
            gain,
            victims.loss,
            switching,
            self._error(variance + victims.variance, horizon) + least_gain,
        )

    def _error(self, variance: float, horizon: Horizon) -> float:
        """Error of what rates of this variance let expect over a turn."""
        return self._config.num_errors * math.sqrt(variance * (horizon.turn_s**2 * self._unit_per_s / 2))

    def _due_in_s(self, standing: Standing, victims: _Victims) -> float:
        """Seconds for which a change can be put off without anybody missing a target; 0 if it costs nobody a pause,
        or if nobody waits who could still be saved."""
        least_s = standing.least_slack_s
        if least_s == math.inf or not any(is_in_time(each.slacks_s) for each in victims.residents):
            return 0.0
        due_in_s = least_s - standing.back_s - guard_s(standing.back_s)
        return due_in_s if due_in_s >= _SOONEST_S else 0.0

    def _losses_of(self, horizon: Horizon) -> list[float]:
        """For each resident, the requests lost if it leaves."""
        if horizon not in self._losses:
            # It comes back once the one that comes has had a while, and each other that waits its turn.
            away_s = np.maximum(_LEAST_AWAY_S, 2 * self._back_s) + horizon.turn_s * (self._num_away - 1)
            in_time = self._slacks_s >= 0
            # What a pause takes of its slack a request lacks at the next pause, or beside the next who come.
            share_used = away_s[self._owner] / np.maximum(self._slacks_s, 1e-3)
            paused = np.where(self._is_short_of_kv, 1.0, np.minimum(1.0, share_used)) * in_time
            num_lost = np.bincount(self._owner, paused, minlength=len(self._residents))
            num_to_come = np.where(
                self._is_guest, 0.0, self._rate_per_s * horizon.lasts_s + self._num_expected
            )
            self._losses[horizon] = (self._weight * (num_lost + self._share_lost * num_to_come)).tolist()
        return self._losses[horizon]

    def _order(self, turn_s: float, among: Among) -> list[int]:
        """Residents in the order in which they leave, the one first that loses least for its bytes over a turn."""
        if (turn_s, among) not in self._orders:
            losses = self._losses_of(Horizon(turn_s, turn_s))
            ranks = [
                (losses[index] / max(1, each.num_bytes), each.num_bytes, index)
                for index, each in enumerate(self._residents)
                if index not in self._gone and among.includes(each)
            ]
            self._orders[turn_s, among] = [index for _, _, index in sorted(ranks)]
        return self._orders[turn_s, among]

    def _cheapest(self, horizon: Horizon, lack: Lack, among: Among) -> _Victims | None:
        """The residents whose leaving loses least for their bytes, none of them needlessly; None if all together do
        not free enough."""
        key = horizon, among, lack
        if key not in self._found:
            order = self._order(horizon.turn_s, among)
            victims = self._least(order, self._losses_of(horizon), lack)
            self._found[key] = self._victims(victims, horizon)
        return self._found[key]

    def _victims(self, indices: list[int] | None, horizon: Horizon) -> _Victims | None:
        if indices is None:
            return None
        losses = self._losses_of(horizon)
        leaving = tuple(self._residents[each] for each in indices)
        loss = least_cost = sum(losses[each] for each in indices)
        variance = sum(self._variance[each] for each in indices)
        back_s = sum(each.back_s for each in leaving)
        all_guests = all(each.is_guest for each in leaving)
        if not all_guests:
            least_cost += self._present_rate_per_s * back_s * self._config.move_slows
            least_cost += self._error(variance, horizon)
        return _Victims(leaving, loss, least_cost, variance, back_s, all_guests)

    def _least(self, order: list[int], losses: list[float], lack: Lack) -> list[int] | None:
        """The first of these, as many as are needed, without those that turn out to be needless."""
        most = 1  # few are enough as a rule
        while lack(self._names(order[:most])) > 0:
            if most >= len(order):
                return None
            most *= 2
        num = bisect.bisect_left(
            range(most), True, most // 2, key=lambda num: lack(self._names(order[:num])) <= 0
        )
        chosen = order[:num]
        for each in sorted(chosen[:-1], key=lambda index: -losses[index]):  # the last is needed
            if lack(self._names(other for other in chosen if other != each)) <= 0:
                chosen.remove(each)
        return chosen

    def _names(self, indices: Iterable[int]) -> list[str]:
        return [self._residents[each].name for each in indices]
