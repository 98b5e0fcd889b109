"""How sure a benchmark is of a ratio or of a share."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

__all__ = ["is_as_expected", "mean_ratio", "share_interval"]

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
