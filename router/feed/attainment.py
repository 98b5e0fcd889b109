"""How well targets are kept, as the live feed shows it. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from mooring.merge_patch import Document
from router.telemetry.attainment import Attainment

__all__ = ["attainment_part", "attainment_share"]


def attainment_part(entries: Iterable[Attainment], now_s: float) -> Document:
    """By window, and in it by tenant, class and model, of those that had requests in it.

    Args:
        now_s: on the clock of the attainments.
    """
    found: dict[str, Document] = defaultdict(dict)
    for entry in entries:
        for name, window in entry.windows.items():
            judged = window.count(now_s)
            if judged.attained is None:
                continue
            about: Document = {
                "tenant": entry.tenant,
                "slo_class": entry.slo_class,
                "deployment": entry.model,
                "num": judged.num_requests,
                "share": round(judged.attained, 4),
            }
            if entry.goal is not None:
                about |= {"goal": entry.goal, "budget_left": round(judged.budget_left(entry.goal), 3)}
            found[name][f"{entry.tenant}|{entry.slo_class}|{entry.model}"] = about
    return dict(found)


def attainment_share(entries: Iterable[Attainment], now_s: float) -> float | None:
    """Share of the last minute's requests that met the targets of a class with a goal; None if there was none."""
    judged = [entry.windows["1m"].count(now_s) for entry in entries if entry.goal is not None]
    num_requests = sum(each.num_requests for each in judged)
    return round(sum(each.num_met for each in judged) / num_requests, 4) if num_requests else None
