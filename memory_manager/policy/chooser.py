"""Which models are to be on a device: what a change of the set gains is weighed against what it costs.

A request has slack: for how long it can be left alone and still meet its targets. A model that leaves is away until
somebody wants it back, so of its requests those are lost whose slack is shorter than that time; of the requests that
are still to come a share is lost, which grows with the time to bring the model back. A model that comes saves the
requests that wait for it and whose slack is longer than the time that it takes to come, and the same share of those
to come. Late requests save almost nothing: they come in where nobody is kept from anything.

Rates are estimates. A set changes only for a gain that exceeds the cost by ``num_errors`` standard errors of what
rates contribute, so where nothing is known for certain the set is held, and the outcome is that of a fixed partition.
A change that costs running requests a pause is put off until the last moment at which it still saves who waits:
meanwhile more come that it serves as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memory_manager.config import PlannerConfig

__all__ = ["Choice", "Exchange", "Standing", "choose"]


@dataclass(frozen=True, slots=True)
class Standing:
    """A model, as far as the choice turns on it.

    Attributes:
        num_bytes: bytes of the device that its presence takes.
        is_present: it is on the device, or on its way there.
        may_leave: it is there, with nothing under way, and nothing keeps it.
        may_come: it can be brought, and would be served.
        back_s: seconds to bring it, or to bring it back if it leaves.
        slacks_s: float64 [R], in ascending order, of the requests that wait for it or run on it: seconds for which
            each can be left alone and still meet its targets; below 0 for those that cannot meet them any more.
        rate_per_s: requests expected per second.
        weight: that of each of its requests.
    """

    name: str
    num_bytes: int
    is_present: bool
    may_leave: bool
    may_come: bool
    back_s: float
    slacks_s: NDArray[np.float64]
    rate_per_s: float
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Exchange:
    """A change of the set: one model comes, and others leave for it.

    Attributes:
        come: name of the model.
        leave: names of the models that leave; none if there is room.
        gain: requests that are expected to meet their targets because it comes.
        loss: requests that are expected to miss them because others leave.
        switching: requests that others miss while weights are moved.
        margin: error of the estimates, by which the gain has to exceed both.
    """

    come: str
    leave: tuple[str, ...]
    gain: float
    loss: float
    switching: float
    margin: float

    @property
    def net(self) -> float:
        return self.gain - self.loss - self.switching - self.margin


@dataclass(frozen=True, slots=True)
class Choice:
    """Changes of the set that are worth while.

    Attributes:
        exchanges: to be done now, the one that gains most first.
        put_off: exchanges that will be worth while, with the seconds until they are due.
    """

    exchanges: tuple[Exchange, ...]
    put_off: tuple[tuple[Exchange, float], ...] = ()

    @property
    def due_in_s(self) -> float:
        """Seconds until the choice is to be made again, if nothing happens before; ``inf`` for never."""
        return min((due_s for _, due_s in self.put_off), default=math.inf)


def choose(
    standings: Sequence[Standing], room_bytes: int, fresh_slack_s: float, config: PlannerConfig
) -> Choice:
    """The changes that are worth their cost.

    Args:
        room_bytes: free beside all that are present.
        fresh_slack_s: slack of a request that has just come.
    """
    if not any(_is_wanted(each) for each in standings):
        return Choice(())
    return _Choosing(standings, room_bytes, fresh_slack_s, config).run()


def _is_wanted(standing: Standing) -> bool:
    return standing.may_come and not standing.is_present and len(standing.slacks_s) > 0


class _Choosing:
    def __init__(
        self, standings: Sequence[Standing], room_bytes: int, fresh_slack_s: float, config: PlannerConfig
    ) -> None:
        self._config = config
        self._room_bytes = room_bytes
        self._fresh_slack_s = max(fresh_slack_s, 1e-3)
        self._candidates = [each for each in standings if _is_wanted(each)]
        self._residents = [each for each in standings if each.may_leave]
        self._total_rate_per_s = sum(each.weight * each.rate_per_s for each in standings if each.is_present)
        self._losses: dict[float, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
        self._gone: set[str] = set()
        num = [len(each.slacks_s) for each in self._residents]
        self._owner = np.repeat(np.arange(len(num)), num)
        self._slacks_s = (
            np.concatenate([each.slacks_s for each in self._residents]) if self._residents else np.zeros(0)
        )
        self._back_s = np.array([each.back_s for each in self._residents])
        self._rate_per_s = np.array([each.rate_per_s for each in self._residents])
        self._weight = np.array([each.weight for each in self._residents])
        self._num_bytes = np.array([each.num_bytes for each in self._residents], np.int64)
        on_time = self._owner[self._slacks_s >= 0]
        self._is_busy = np.bincount(on_time, minlength=len(num)) > 0

    def run(self) -> Choice:
        exchanges: list[Exchange] = []
        put_off: list[tuple[Exchange, float]] = []
        found = [
            (exchange, each) for each in self._candidates if (exchange := self._exchange(each)) is not None
        ]
        found.sort(key=lambda pair: (-pair[0].net, pair[0].come))
        for exchange, standing in found:
            if self._gone.intersection(exchange.leave) or (not exchange.leave and exchanges):
                again = self._exchange(standing)  # somebody else has taken what it counted on
                if again is None:
                    continue
                exchange = again
            due_s = self._due_in_s(exchange, standing)
            if due_s > 0:
                put_off.append((exchange, due_s))
                continue
            exchanges.append(exchange)
            self._gone.update(exchange.leave)
            freed = sum(each.num_bytes for each in self._residents if each.name in exchange.leave)
            self._room_bytes += freed - standing.num_bytes
        return Choice(tuple(exchanges), tuple(put_off))

    def _exchange(self, standing: Standing) -> Exchange | None:
        """The best exchange that brings this model; None if none is worth while."""
        num_in_time = len(standing.slacks_s) - int(np.searchsorted(standing.slacks_s, standing.back_s))
        num_late = len(standing.slacks_s) - num_in_time
        horizon_s = self._horizon_s(standing.back_s)
        share = self._share_lost(standing.back_s)
        to_come = standing.rate_per_s * share * (horizon_s - standing.back_s)
        late = num_late * self._config.late_worth
        gain = standing.weight * (num_in_time + to_come + late)
        if standing.num_bytes <= self._room_bytes:
            return Exchange(standing.name, (), gain, 0.0, 0.0, 0.0)
        losses, errors = self._losses_of(horizon_s)
        victims = self._cheapest(losses, standing.num_bytes - self._room_bytes)
        if victims is None:
            return None
        if self._is_busy[victims].any():
            gain -= standing.weight * late
        error = standing.weight * share * horizon_s * math.sqrt(self._variance(standing.rate_per_s))
        switching = (
            self._total_rate_per_s
            * (standing.back_s + float(self._back_s[victims].sum()))
            * (self._config.move_slows + share)
        )
        exchange = Exchange(
            standing.name,
            tuple(self._residents[each].name for each in victims),
            gain,
            float(losses[victims].sum()),
            switching,
            self._config.num_errors * math.hypot(error, *errors[victims].tolist()),
        )
        return exchange if exchange.net > 0 else None

    def _due_in_s(self, exchange: Exchange, standing: Standing) -> float:
        """Seconds for which the exchange can be put off without anybody missing a target; 0 if it costs nobody a
        pause, or if nobody waits who could still be saved."""
        leaving = [index for index, each in enumerate(self._residents) if each.name in exchange.leave]
        if not self._is_busy[leaving].any():
            return 0.0
        first = int(np.searchsorted(standing.slacks_s, standing.back_s))
        if first == len(standing.slacks_s):
            return 0.0
        spare_s = float(standing.slacks_s[first]) - standing.back_s - self._config.swap_guard_s
        return max(0.0, spare_s)

    def _horizon_s(self, back_s: float) -> float:
        """Seconds over which a change is judged: 10 times what it takes, at least 1 s, as a power of 2, so that many
        models share one."""
        return 2.0 ** math.ceil(math.log2(max(1.0, 10 * back_s)))

    def _share_lost(self, back_s: float | NDArray[np.float64]) -> float:
        """Share of the requests that find their model away and miss their targets by that."""
        return np.minimum(1.0, back_s / self._fresh_slack_s)  # type: ignore[return-value]

    def _variance(self, rate_per_s: float | NDArray[np.float64]) -> float:
        """Variance of an exponentially decayed rate of Poisson arrivals, per second squared."""
        return rate_per_s * math.log(2) / (2 * self._config.rate_half_life_s)  # type: ignore[return-value]

    def _losses_of(self, horizon_s: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """For each resident, the requests lost if it leaves for so long, and the error of that."""
        if horizon_s not in self._losses:
            away_s = horizon_s + self._back_s
            is_lost = (self._slacks_s >= 0) & (self._slacks_s < away_s[self._owner])
            num_lost = np.bincount(self._owner[is_lost], minlength=len(self._residents))
            share = self._share_lost(self._back_s)
            losses = self._weight * (num_lost + self._rate_per_s * share * horizon_s)
            errors = self._weight * share * horizon_s * np.sqrt(self._variance(self._rate_per_s))
            self._losses[horizon_s] = losses, errors
        return self._losses[horizon_s]

    def _cheapest(self, losses: NDArray[np.float64], shortage_bytes: int) -> NDArray[np.int64] | None:
        """The residents whose leaving loses least for what it frees, none of them needlessly; None if all together
        do not free enough."""
        order = np.lexsort((self._num_bytes, losses / np.maximum(1, self._num_bytes)))
        order = np.array(
            [each for each in order.tolist() if self._residents[each].name not in self._gone], np.int64
        )
        freed = np.cumsum(self._num_bytes[order])
        num = int(np.searchsorted(freed, shortage_bytes)) + 1
        if num > len(order):
            return None
        chosen = order[:num].tolist()
        surplus = int(freed[num - 1]) - shortage_bytes
        for each in sorted(chosen, key=lambda index: -losses[index]):
            if self._num_bytes[each] <= surplus:
                chosen.remove(each)
                surplus -= int(self._num_bytes[each])
        return np.array(chosen, np.int64)
