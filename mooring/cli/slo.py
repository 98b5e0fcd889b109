"""``mooring slo``: which share of requests met the targets of their SLO class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer

from mooring.cli.output import Json, print_json, print_table


def slo(context: typer.Context, json: Json = False) -> None:
    """Show how well SLO classes are kept, over the last minute and hour."""
    if json:
        return print_json(context.obj.get("/slo?misses=20"))
    entries = context.obj.get("/slo")
    rows = [
        (e["tenant"], e["slo_class"], e["model"], _share(e["goal"]), *_window(e["windows"]["1m"]),
         *_window(e["windows"]["1h"]), _share(e["windows"]["1h"]["budget_left"]))
        for e in entries
    ]  # fmt: skip
    columns = (
        *("tenant", "SLO class", "model", "goal#", "1 min#", "requests#", "1 h#", "requests#"),
        "budget left#",
    )
    return print_table(columns, rows, "No request has ended yet.")


def _window(window: Mapping[str, Any]) -> tuple[str | None, int]:
    return _share(window["attained"]), window["requests"]


def _share(share: float | None) -> str | None:
    return None if share is None else f"{share:.2%}"
