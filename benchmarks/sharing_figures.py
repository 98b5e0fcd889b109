"""What the sharing benchmark concludes from its curves: pure functions of attainment and goodput against load."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.replay import Summary

__all__ = ["Curve", "compare", "highest_load"]

Curve = Mapping[float, Summary]
"""By offered load, in requests per second."""

FULL_GOAL, STATIC_GOAL = 0.99, 0.90


def highest_load(curve: Curve, goal: float) -> float | None:
    """The highest load up to which every measured one attains ``goal``; None where the lowest does not."""
    found = None
    for load in sorted(curve):
        if curve[load].attainment < goal:
            break
        found = load
    return found


def compare(elastic: Curve, static: Curve, swap: Curve, duration_s: float) -> dict[str, float]:
    """The figures that the curves give; those that they cannot give are left out.

    ``ttft_p99_static_over_elastic`` is at the highest load that the static partition attains 90 % of;
    ``goodput_elastic_over_static`` the ratio of the highest loads of which 99 % are attained;
    ``goodput_elastic_over_swap`` the ratio of the goodputs at elastic's highest such load.

    Args:
        duration_s: of a trace; where swapping attained nothing at all it counts as one request.
    """
    figures: dict[str, float] = {}
    static_load = highest_load(static, STATIC_GOAL)
    if static_load is not None and static_load in elastic:
        figures["ttft_p99_load_per_s"] = static_load
        figures["ttft_p99_static_over_elastic"] = (
            static[static_load].ttft_p99_s / elastic[static_load].ttft_p99_s
        )
    elastic_full, static_full = highest_load(elastic, FULL_GOAL), highest_load(static, FULL_GOAL)
    if elastic_full is not None:
        figures["elastic_load_at_99_per_s"] = elastic_full
    if static_full is not None:
        figures["static_load_at_99_per_s"] = static_full
    if elastic_full is not None and static_full is not None:
        figures["goodput_elastic_over_static"] = elastic_full / static_full
    if elastic_full is not None and elastic_full in swap:
        least_per_s = 1 / duration_s
        figures["goodput_elastic_over_swap"] = elastic[elastic_full].goodput_per_s / max(
            swap[elastic_full].goodput_per_s, least_per_s
        )
    return figures
