"""Chooses who is admitted into KV that many sequences share, by what all of them are expected to need, and who makes
way. Pure functions over columns, which a worker and the manager both ask.

To admit by the expected peak rather than by what is held now is the Past-Future scheduler's (Gong et al., ASPLOS
2025): a sequence that is admitted into room that others will soon need is preempted, and computed again.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "LEAST_LEFT_TOKENS",
    "UNMEASURED_OUTPUT_TOKENS",
    "KVDemand",
    "expected_left",
    "expected_peak_bytes",
    "is_earliest_of_its_priority",
    "is_turn_of_late",
    "kept_until_tokens",
    "making_way",
    "mean_with",
]

LEAST_LEFT_TOKENS = 8.0
"""Tokens that a sequence is expected to give yet, however many it has given, unless it ends before."""
UNMEASURED_OUTPUT_TOKENS = 256.0
"""Tokens of an output of a model that has ended none, unless it is asked for fewer."""

_MEAN_WEIGHT = 0.05  # of a new output; before there were so many, each has the same
_ADMISSIONS_TO_A_LATE_ONE = 32
_FAIR_TOKENS = 32


@dataclass(frozen=True, slots=True)
class KVDemand:
    """KV of sequences that share it, as columns [S].

    Attributes:
        num_left: float64, tokens that each is expected to have before it.
        held_bytes: float64, KV of each once all that is known of it is computed.
        token_bytes: float64, KV of each further token.
        priority: int64, higher is more urgent.
        arrival: int64, order of submission in the worker; no two are equal.
        num_lost_tokens: int64, tokens that each would compute again if it were preempted.
        may_go: bool, whether it makes way for one of its own priority that is in time: it runs, is late, and is not
            kept for a while.
    """

    num_left: NDArray[np.float64]
    held_bytes: NDArray[np.float64]
    token_bytes: NDArray[np.float64]
    priority: NDArray[np.int64]
    arrival: NDArray[np.int64]
    num_lost_tokens: NDArray[np.int64]
    may_go: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.num_left)

    @classmethod
    def joined(cls, demands: Sequence[KVDemand]) -> KVDemand:
        """The sequences of all of these, in their order."""
        return cls(
            *(np.concatenate([getattr(each, column.name) for each in demands]) for column in fields(cls))
        )

    def without(self, rows: NDArray[np.int64]) -> KVDemand:
        return KVDemand(*(np.delete(getattr(self, column.name), rows) for column in fields(self)))

    def peak_bytes(self) -> float:
        return expected_peak_bytes(self.num_left, self.held_bytes, self.token_bytes)


def expected_left(
    num_output: NDArray[np.float64], mean_output: NDArray[np.float64], most_output: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Tokens that sequences are expected to have before them, float64 [S].

    Args:
        num_output: float64 [S], tokens that each has given.
        mean_output: float64 [S], of outputs of its model.
        most_output: float64 [S], tokens at which each ends in any case; more than it has given.
    """
    return np.minimum(np.maximum(mean_output - num_output, LEAST_LEFT_TOKENS), most_output - num_output)


def mean_with(mean_output: float, num_ended: int, num_output: int) -> float:
    """Takes one more output into the running mean of a model's outputs, in tokens.

    Args:
        num_ended: outputs before it.
        num_output: its tokens.
    """
    return mean_output + max(_MEAN_WEIGHT, 1 / (num_ended + 2)) * (num_output - mean_output)


def expected_peak_bytes(
    num_left: NDArray[np.float64], held_bytes: NDArray[np.float64], token_bytes: NDArray[np.float64]
) -> float:
    """The most KV that sequences will hold at one time, if all go on at one pace and each ends as expected.

    Args:
        num_left: float64 [S], tokens that each is expected to have before it.
        held_bytes: float64 [S], once what it has to compute is computed.
        token_bytes: float64 [S], of a token's KV.
    """
    order = np.argsort(-num_left)
    return _peak_bytes(num_left[order], held_bytes[order], token_bytes[order])


def _peak_bytes(
    num_left: NDArray[np.float64], held_bytes: NDArray[np.float64], token_bytes: NDArray[np.float64]
) -> float:
    """``expected_peak_bytes`` of sequences of which those come first that have the most before them."""
    return float((held_bytes.cumsum() + num_left * token_bytes.cumsum()).max(initial=0.0))


def making_way(
    running: KVDemand,
    newcomer: KVDemand,
    capacity_bytes: float,
    short_bytes: float = 0.0,
    *,
    takes_place: bool,
) -> NDArray[np.int64] | None:
    """Chooses which running sequences are preempted so that another can be admitted: none if it fits beside all.

    It may take the place of others, the fewest that are enough: of those of a lower priority, and of late ones of its
    own. The lowest priority goes first, of it those that lose least; among equals the latest arrival. The earliest
    arrival of each priority stays, as in any preemption. One that would run alone is always admitted.

    Args:
        newcomer: one row.
        capacity_bytes: KV of all together, now and in time to come.
        short_bytes: what must come free now in any case.
        takes_place: of others, if it must: it is in time, or goes before one that is.

    Returns:
        Rows, int64; None if it has to wait.
    """

    num_left, held_bytes, token_bytes = (
        np.concatenate((getattr(running, name), getattr(newcomer, name)))
        for name in ("num_left", "held_bytes", "token_bytes")
    )
    longest_first = np.argsort(-num_left)
    num_left = num_left[longest_first]

    def is_enough(num: int) -> bool:
        gone = order[:num]
        if num == len(running):
            return bool(running.held_bytes.sum() >= short_bytes)
        stays = np.ones(len(num_left))
        stays[gone] = 0.0
        peak_bytes = _peak_bytes(
            num_left, (held_bytes * stays)[longest_first], (token_bytes * stays)[longest_first]
        )
        return peak_bytes <= capacity_bytes and bool(running.held_bytes[gone].sum() >= short_bytes)

    order = np.empty(0, np.int64)
    if is_enough(0) or not takes_place:
        return order if is_enough(0) else None
    own = newcomer.priority[0]
    order = np.flatnonzero((running.priority < own) | (running.may_go & (running.priority == own)))
    if len(order):
        order = order[~is_earliest_of_its_priority(running.priority, running.arrival)[order]]
        keys = (-running.arrival[order], running.num_lost_tokens[order], running.priority[order])
        order = order[np.lexsort(keys)]
    num = bisect_left(range(len(order) + 1), True, key=is_enough)
    return order[:num] if num <= len(order) else None


def is_earliest_of_its_priority(priority: NDArray[np.int64], arrival: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of these sequences came first of those of its priority, bool [S]. Both are int64 [S]."""
    by_priority = np.lexsort((arrival, priority))
    _, first = np.unique(priority[by_priority], return_index=True)
    is_earliest = np.zeros(len(arrival), np.bool_)
    is_earliest[by_priority[first]] = True
    return is_earliest


def is_turn_of_late(num_since_late: int) -> bool:
    """Whether the next to be admitted is the late sequence that has waited for longest, whoever is in time.

    Args:
        num_since_late: admissions since the last of these.
    """
    return num_since_late >= _ADMISSIONS_TO_A_LATE_ONE - 1


def kept_until_tokens(num_found: int, num_tokens: int, *, is_its_turn: bool) -> int:
    """Computed tokens up to which an admitted sequence makes way for nobody, though it is late: the first that it
    computes; if it was admitted in its turn all that are known, and some that it gives.

    Args:
        num_found: tokens that it need not compute.
        num_tokens: known ones.
    """
    return num_tokens + _FAIR_TOKENS if is_its_turn else num_found + 1
