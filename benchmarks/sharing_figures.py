"""Conclusions of the sharing benchmark from its curves: pure functions of attainment and goodput against
load."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.replay import Summary

__all__ = ["Curve", "compare", "highest_attaining", "highest_load"]

Curve = Mapping[float, Summary]
"""Summaries by offered load, in requests per second."""

FULL_GOAL, STATIC_GOAL = 0.99, 0.90


def highest_load(curve: Curve, goal: float) -> float | None:
    """The highest load up to which every measured load attains ``goal``; None if the lowest does not."""
    return highest_attaining({load: summary.attainment for load, summary in curve.items()}, goal)


def highest_attaining(attainment: Mapping[float, float], goal: float) -> float | None:
    """Does what ``highest_load`` does, for attainments by load."""
    found = None
    for load in sorted(attainment):
        if attainment[load] < goal:
            break
        found = load
    return found


def compare(elastic: Curve, static: Curve, swap: Curve, duration_s: float) -> dict[str, float]:
    """The figures that the curves give; figures that they cannot give are left out.

    ``ttft_p99_static_over_elastic`` is taken at the highest load of which the static partition attains 90 %;
    ``goodput_elastic_over_static`` is the ratio of the highest loads of which 99 % are attained;
    ``goodput_elastic_over_swap`` is the ratio of the goodputs at the highest such load of the elastic policy.

    Args:
        duration_s: length of a trace; if swapping attained nothing at all, that counts as one request.
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
