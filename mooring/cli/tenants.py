"""``mooring tenants``: tenants and their keys."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mooring.cli.output import Json, console, print_json, print_table
from mooring.errors import InvalidRequestError

app = typer.Typer(help="Tenants and their API keys.", no_args_is_help=True)
keys = typer.Typer(help="API keys of a tenant.", no_args_is_help=True)
app.add_typer(keys, name="keys")

Weight = Annotated[
    float | None,
    typer.Option(help="Its share of a device among tenants of one priority, relative to theirs; 1 at first."),
]


@app.command("list")
def list_tenants(context: typer.Context, json: Json = False) -> None:
    """List tenants."""
    tenants = context.obj.get_all("/tenants")
    if json:
        return print_json(tenants)
    rows = [
        (t["name"], t["slo_class"], ", ".join(t["allowed_slo_classes"]), f"{t['weight']:g}", t["keys"],
         t["created"])
        for t in tenants
    ]  # fmt: skip
    columns = ("name", "SLO class", "may use", "weight#", "keys#", "created")
    return print_table(columns, rows, "There are no tenants.")


@app.command()
def create(context: typer.Context, name: str, weight: Weight = None) -> None:
    """Create a tenant."""
    context.obj.post("/tenants", {"name": name, **({} if weight is None else {"weight": weight})})
    console().print(f"Tenant {name} is created. Give it a key with `mooring tenants keys create {name}`.")


@app.command()
def update(
    context: typer.Context,
    name: str,
    slo_class: Annotated[str | None, typer.Option(help="Its SLO class from now on.")] = None,
    best_effort: Annotated[bool, typer.Option("--best-effort", help="Take its SLO class away.")] = False,
    allow_slo_class: Annotated[
        list[str] | None,
        typer.Option(
            help="A class that its requests may name, beside its own. Repeat it: all others are taken away."
        ),
    ] = None,
    no_allowed_slo_classes: Annotated[
        bool, typer.Option("--no-allowed-slo-classes", help="Let its requests name no class but its own.")
    ] = False,
    weight: Weight = None,
) -> None:
    """Change a tenant's SLO class, those that its requests may name, or its weight."""
    if slo_class is not None and best_effort:
        raise InvalidRequestError("give either --slo-class or --best-effort")
    if allow_slo_class and no_allowed_slo_classes:
        raise InvalidRequestError("give either --allow-slo-class or --no-allowed-slo-classes")
    changes: dict[str, Any] = {}
    if slo_class is not None or best_effort:
        changes["slo_class"] = slo_class
    if allow_slo_class or no_allowed_slo_classes:
        changes["allowed_slo_classes"] = allow_slo_class or []
    if weight is not None:
        changes["weight"] = weight
    if not changes:
        raise InvalidRequestError("nothing to change: give at least one option (see --help)")
    context.obj.patch(f"/tenants/{name}", changes)
    console().print(f"Tenant {name} is changed.")


@app.command()
def delete(context: typer.Context, name: str) -> None:
    """Delete a tenant; refused while it has keys that are not revoked."""
    context.obj.delete(f"/tenants/{name}")
    console().print(f"Tenant {name} is deleted.")


@keys.command("create")
def create_key(
    context: typer.Context,
    tenant: str,
    name: Annotated[str, typer.Option(help="What the key is for.")] = "",
    json: Json = False,
) -> None:
    """Make a key; it is shown this once."""
    created = context.obj.post(f"/tenants/{tenant}/keys", {"name": name})
    if json:
        return print_json(created)
    typer.echo(created["key"])
    return typer.echo("Keep it: it cannot be shown again.", err=True)


@keys.command("list")
def list_keys(context: typer.Context, tenant: str, json: Json = False) -> None:
    """List a tenant's keys by their first characters."""
    found = context.obj.get_all(f"/tenants/{tenant}/keys")
    if json:
        return print_json(found)
    rows = [(k["prefix"], k["name"], k["created"], k["revoked"]) for k in found]
    return print_table(("key", "name", "created", "revoked"), rows, f"{tenant} has no keys.")


@keys.command("revoke")
def revoke_key(
    context: typer.Context,
    tenant: str,
    prefix: Annotated[str, typer.Argument(help="The key's first characters, as `list` shows them.")],
) -> None:
    """Revoke a key."""
    context.obj.delete(f"/tenants/{tenant}/keys/{prefix}")
    console().print(f"Key {prefix}... is revoked.")
