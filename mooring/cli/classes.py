"""``mooring classes``: SLO classes, which say what tenants' requests are promised."""

from __future__ import annotations

from typing import Any

import typer

from mooring.cli.declared_options import with_options_of
from mooring.cli.output import Json, console, print_json, print_table
from mooring.errors import InvalidRequestError
from mooring.slo import SLOClass

app = typer.Typer(help="SLO classes: targets that tenants' requests are to meet.", no_args_is_help=True)


@app.command("list")
def list_classes(context: typer.Context, json: Json = False) -> None:
    """List SLO classes and the tenants that have them."""
    classes = context.obj.get("/slo-classes")
    if json:
        return print_json(classes)
    rows = [
        (c["name"], f"{c['ttft_target_s']:g} s", f"{c['tpot_target_s']:g} s", f"{c['goal']:.6g}", c["priority"],
         c["on_miss"], ", ".join(c["tenants"]))
        for c in classes
    ]  # fmt: skip
    columns = ("name", "first token#", "each further#", "goal#", "priority#", "on a miss", "tenants")
    return print_table(columns, rows, "There are no SLO classes.")


@app.command()
@with_options_of(SLOClass)
def create(context: typer.Context, name: str, **targets: Any) -> None:
    """Create an SLO class; `mooring tenants update` gives it to a tenant."""
    context.obj.post("/slo-classes", {"name": name, **targets})
    console().print(f"SLO class {name} is created.")


@app.command()
@with_options_of(SLOClass)
def update(context: typer.Context, name: str, **targets: Any) -> None:
    """Change an SLO class."""
    if not targets:
        raise InvalidRequestError("nothing to change: give at least one option (see --help)")
    context.obj.patch(f"/slo-classes/{name}", targets)
    console().print(f"SLO class {name} is changed.")


@app.command()
def delete(context: typer.Context, name: str) -> None:
    """Delete an SLO class; refused while tenants have it, or may use it."""
    context.obj.delete(f"/slo-classes/{name}")
    console().print(f"SLO class {name} is deleted.")
