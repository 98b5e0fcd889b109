"""How sure a benchmark is of a ratio, of a share, or of telling two kinds apart."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Auc", "auc_of", "is_as_expected", "mean_ratio", "share_interval"]

_T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}  # of Student's t, by number of pairs
_Z_95 = 1.96
_ALIKE = 0.05  # a smaller difference of shares needs no explanation
_LEAST = 1e-3  # that is divided by


def mean_ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Mean of the ratios, pair by pair, and half of its 95 % interval; of a single pair that half is 0."""
    ratios = [our / max(their, _LEAST) for our, their in zip(ours, theirs, strict=True)]
    if len(ratios) < 2:
        return ratios[0], 0.0
    half = _T_95.get(len(ratios), _Z_95) * statistics.stdev(ratios) / len(ratios) ** 0.5
    return statistics.fmean(ratios), half


def share_interval(share: float, num: int) -> tuple[float, float]:
    """95 % interval of a share of ``num`` that are independent of each other (Wilson, 1927)."""
    weight = _Z_95**2 / num
    half = _Z_95 * math.sqrt(share * (1 - share) / num + weight / (4 * num))
    return (share + weight / 2 - half) / (1 + weight), (share + weight / 2 + half) / (1 + weight)


def is_as_expected(share: float, num: int, expected: float) -> bool:
    """Whether a share of ``num`` is within 5 points, or within its 95 % interval, of what was expected."""
    low, high = share_interval(share, num)
    return abs(share - expected) <= _ALIKE or low <= expected <= high


@dataclass(frozen=True, slots=True)
class Auc:
    """Area under the curve of a guess, with its 95 % interval.

    Attributes:
        value: how likely one of the first kind is less than one of the second; ties count as one half.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def auc_of(first: Sequence[float], second: Sequence[float]) -> Auc:
    """AUC of telling two kinds apart by which is less (Mann and Whitney, 1947).

    Its interval is that of DeLong, DeLong and Clarke-Pearson (1988), which has no width if they are wholly apart.

    Raises:
        ValueError: there are not at least two of each kind.
    """
    if min(len(first), len(second)) < 2:
        raise ValueError("an interval needs two of each kind")
    ours, theirs = np.asarray(first, np.float64), np.asarray(second, np.float64)
    of_ours = 1 - _share_below(ours, theirs)
    of_theirs = _share_below(theirs, ours)
    value = float(of_theirs.mean())
    half = _Z_95 * math.sqrt(of_ours.var(ddof=1) / len(ours) + of_theirs.var(ddof=1) / len(theirs))
    return Auc(value, max(0.0, value - half), min(1.0, value + half))


def _share_below(values: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of ``others`` that is less than each value; ties count as one half."""
    ordered = np.sort(others)
    num_below = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
    share: NDArray[np.float64] = num_below / (2 * len(others))
    return share
