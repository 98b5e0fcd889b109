"""``mooring queue``: who waits for each device, and for what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer

from mooring.cli.output import Json, console, print_json, print_table, seconds

__all__ = ["COLUMNS", "queue", "queue_row"]

COLUMNS = ("device", "policy", "in time#", "late#", "longest wait#", "all begin within#", "fairness#")


def queue(context: typer.Context, json: Json = False) -> None:
    """Show who waits for each device: how many, for how long, and the first of them with what they wait for."""
    queues = context.obj.get("/queues")
    if json:
        return print_json(queues)
    print_table(COLUMNS, map(queue_row, queues), "No devices.")
    for each in queues:
        if each["shares"]:
            _print_waiting(each)
    return None


def queue_row(queue: Mapping[str, Any]) -> tuple[object, ...]:
    """A device's queue as a row of a table with ``COLUMNS``."""
    return (
        *(queue["device"], queue["policy"], queue["num_in_time"], queue["num_late"]),
        *(seconds(queue["oldest_s"]), seconds(queue["predicted_s"]), f"{queue['jain_index']:.3f}"),
    )


def _print_waiting(queue: Mapping[str, Any]) -> None:
    console().rule(f"{queue['device']}: who waits", align="left")
    shares = [
        (s["deployment"], s["tenant"], s["priority"], s["num_in_time"], s["num_late"], seconds(s["oldest_s"]))
        for s in queue["shares"]
    ]
    of_shares = ("deployment", "tenant", "priority#", "in time#", "late#", "longest wait#")
    print_table(of_shares, shares, "Nobody.")
    console().rule(f"{queue['device']}: the first", align="left")
    first = [
        (w["deployment"], w["tenant"], w["priority"], seconds(w["waited_s"]), seconds(w["due_in_s"]),
         seconds(w["predicted_in_s"]), "yes" if w["is_late"] else "no", w["reason"].replace("_", " "))
        for w in queue["first"]
    ]  # fmt: skip
    columns = (
        *("deployment", "tenant", "priority#", "waited#", "due in#", "predicted in#", "late"),
        "waits for",
    )
    print_table(columns, first, "Nobody.")
