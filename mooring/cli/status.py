"""``mooring status``: which memory each owner holds, where each model is, and who waits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from mooring.cli import events, queue
from mooring.cli.output import Json, console, print_json, print_table
from mooring.units import format_bytes


def status(
    context: typer.Context,
    why: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Who holds each MiB, and why MODEL is where it is.")
    ] = None,
    json: Json = False,
) -> None:
    """Show devices, their queues, workers and deployments: who holds which bytes, and who waits."""
    found = context.obj.get("/status")
    reasons = context.obj.get(f"/deployments/{why}/why") if why is not None else None
    if json:
        return print_json(found if reasons is None else {**found, "why": reasons})
    _print_devices(found["devices"])
    if reasons is not None:
        return _print_why(reasons)
    return _print_rest(found)


def _print_devices(devices: Sequence[Mapping[str, Any]]) -> None:
    console().rule("devices", align="left")
    for device in devices:
        held = sum(device["owners"].values())
        busy = "" if device["utilization"] is None else f", {device['utilization']:.0%} busy"
        console().print(
            f"{device['name']}: {format_bytes(held)} of {format_bytes(device['budget_bytes'])}{busy}"
        )
        owners = [(f"  {owner}", format_bytes(size)) for owner, size in sorted(device["owners"].items())]
        print_table(("  owner", "bytes#"), owners, "  nothing held")


def _print_rest(found: Mapping[str, Any]) -> None:
    console().rule("queues", align="left")
    print_table(queue.COLUMNS, map(queue.queue_row, found["queues"]), "No devices.")
    console().rule("workers", align="left")
    workers = [(w["worker_id"], w["pid"], w["device"], w["state"]) for w in found["workers"]]
    print_table(("worker", "pid#", "device", "state"), workers, "No workers.")
    console().rule("deployments", align="left")
    rows = [
        (d["name"], d["engine"], d["residency"],
         format_bytes(sum(r["lease_bytes"] for r in d["replicas"])),
         format_bytes(sum(r["stats"]["kv_live_bytes"] for r in d["replicas"])),
         format_bytes(sum(r["stats"]["kv_cached_bytes"] for r in d["replicas"])), d["reason"])
        for d in found["deployments"]
    ]  # fmt: skip
    columns = ("name", "engine", "residency", "weights#", "live kv#", "cached kv#", "reason")
    print_table(columns, rows, "Nothing is deployed: `mooring models register NAME SOURCE`.")


def _print_why(why: Mapping[str, Any]) -> None:
    console().rule(why["name"], align="left")
    waiting = f", {why['num_waiting']} requests wait" if why["num_waiting"] else ""
    console().print(f"{why['residency']}: {why['reason'] or 'as nothing has changed it'}{waiting}")
    rows = [
        (r["id"], r["worker"], r["residency"], f"{r['for_s']:.1f} s", format_bytes(r["lease_bytes"]),
         format_bytes(r["stats"]["kv_bytes"]), r["num_active"], r["reason"])
        for r in why["replicas"]
    ]  # fmt: skip
    columns = ("replica", "worker", "residency", "for#", "weights#", "kv#", "requests#", "reason")
    print_table(columns, rows, "It has no replicas.")
    if (way_in := why["way_in"]) is not None and way_in["verdict"] != "there":
        console().rule("to come in now", align="left")
        console().print(way_in["message"])
        leaving = [(d["replica_id"], format_bytes(d["freed_bytes"]), d["reason"]) for d in way_in["leaving"]]
        if leaving:
            print_table(("would leave", "freeing#", "reason"), leaving, "")
    console().rule("decisions", align="left")
    print_table(events.COLUMNS, map(events.event_row, why["decisions"]), "None about it yet.")
