"""``mooring slo``: which share of requests met the targets of their SLO class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer

from mooring.cli.output import Json, console, local_time, print_json, print_table, seconds


def slo(
    context: typer.Context,
    misses: Annotated[
        int,
        typer.Option(
            min=0, max=20, help="Show so many of the last misses of each, and where their time went."
        ),
    ] = 0,
    json: Json = False,
) -> None:
    """Show how well SLO classes are kept, over the last minute and hour."""
    if json:
        return print_json(context.obj.get("/slo?misses=20"))
    entries = context.obj.get(f"/slo?misses={misses}")
    rows = [
        (e["tenant"], e["slo_class"], e["model"], _share(e["goal"]), *_window(e["windows"]["1m"]),
         *_window(e["windows"]["1h"]), _share(e["windows"]["1h"]["budget_left"]))
        for e in entries
    ]  # fmt: skip
    columns = (
        *("tenant", "SLO class", "model", "goal#", "1 min#", "requests#", "1 h#", "requests#"),
        "budget left#",
    )
    print_table(columns, rows, "No request has ended yet.")
    if misses:
        console().rule("misses", align="left")
        print_table(_MISS_COLUMNS, _miss_rows(entries), "None.")
    return None


_MISS_COLUMNS = (
    *("tenant", "SLO class", "model", "request", "ended", "first token#", "queue#", "wake#", "prefill#"),
    *("decode#", "each token#"),
)


def _miss_rows(entries: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str | None, ...]]:
    for e in entries:
        for miss in e["misses"]:
            times = ("ttft_s", "queue_s", "wake_s", "prefill_s", "decode_s", "tpot_s")
            yield (
                *(e["tenant"], e["slo_class"], e["model"], miss["request_id"], local_time(miss["at"])),
                *(seconds(miss[each]) for each in times),
            )


def _window(window: Mapping[str, Any]) -> tuple[str | None, int]:
    return _share(window["attained"]), window["requests"]


def _share(share: float | None) -> str | None:
    return None if share is None else f"{share:.2%}"
