"""``mooring status``: who holds which bytes, and what is where."""

from __future__ import annotations

import typer

from mooring.cli.output import Json, console, print_json, print_table
from mooring.units import format_bytes


def status(context: typer.Context, json: Json = False) -> None:
    """Show devices, workers and deployments: who holds which bytes."""
    found = context.obj.get("/status")
    if json:
        return print_json(found)
    console().rule("devices", align="left")
    for device in found["devices"]:
        held = sum(device["owners"].values())
        console().print(f"{device['name']}: {format_bytes(held)} of {format_bytes(device['budget_bytes'])}")
        owners = [(f"  {owner}", format_bytes(size)) for owner, size in sorted(device["owners"].items())]
        print_table(("  owner", "bytes#"), owners, "  nothing held")
    console().rule("workers", align="left")
    workers = [(w["worker_id"], w["pid"], w["device"], w["state"]) for w in found["workers"]]
    print_table(("worker", "pid#", "device", "state"), workers, "No workers.")
    console().rule("deployments", align="left")
    rows = [
        (d["name"], d["engine"], d["residency"],
         format_bytes(sum(r["weights_bytes"] for r in d["replicas"])),
         format_bytes(sum(r["kv_bytes"] for r in d["replicas"])), d["reason"])
        for d in found["deployments"]
    ]  # fmt: skip
    columns = ("name", "engine", "residency", "weights#", "kv#", "reason")
    return print_table(columns, rows, "Nothing is deployed: `mooring models register NAME SOURCE`.")
