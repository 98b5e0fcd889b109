"""``mooring deployments``: which models are served, and how they are treated."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mooring.cli.declared_options import with_options_of
from mooring.cli.output import Json, console, print_json, print_table
from mooring.errors import InvalidRequestError
from mooring.policy import DeploymentPolicy

app = typer.Typer(help="Create, change, wake and put to sleep what is served.", no_args_is_help=True)


@app.command("list")
def list_deployments(context: typer.Context, json: Json = False) -> None:
    """List deployments."""
    deployments = context.obj.get_all("/deployments")
    if json:
        return print_json(deployments)
    rows = [
        (d["name"], f"{d['model']}:{d['version']}", d["precision"], d["engine"], d["residency"],
         "yes" if d["policy"]["pinned"] else "", d["policy"]["priority"], d["reason"])
        for d in deployments
    ]  # fmt: skip
    columns = ("name", "version", "precision", "engine", "residency", "pinned", "priority#", "reason")
    return print_table(columns, rows, "Nothing is deployed.")


@app.command()
def show(context: typer.Context, name: str, json: Json = False) -> None:
    """Show one deployment and its policy."""
    found = context.obj.get(f"/deployments/{name}")
    if json:
        return print_json(found)
    settings = {**found, **found["policy"]}
    del settings["policy"]
    rows = [
        (key, ("no", "yes")[value] if isinstance(value, bool) else value) for key, value in settings.items()
    ]
    return print_table(("setting", "value"), rows, "")


@app.command()
@with_options_of(DeploymentPolicy)
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="What clients will put in `model`.")],
    model: Annotated[str, typer.Argument(help="A registered model.")],
    version: Annotated[int | None, typer.Option(help="The latest where not given.")] = None,
    engine: Annotated[str | None, typer.Option(help="The server's own where not given.")] = None,
    **policy: Any,
) -> None:
    """Deploy a registered model."""
    body = {"name": name, "model": model, "version": version, "engine": engine, "policy": policy}
    context.obj.post("/deployments", body)
    console().print(f"{name} is deployed.")


@app.command()
@with_options_of(DeploymentPolicy)
def update(
    context: typer.Context,
    name: str,
    version: Annotated[int | None, typer.Option(help="Another version of its model.")] = None,
    **policy: Any,
) -> None:
    """Change how a deployment is treated."""
    changes = dict(policy)
    if version is not None:
        changes["version"] = version
    if not changes:
        raise InvalidRequestError("nothing to change: give at least one option (see --help)")
    context.obj.patch(f"/deployments/{name}", changes)
    console().print(f"{name} is changed.")


@app.command()
def delete(context: typer.Context, name: str) -> None:
    """Stop serving a deployment; the model stays registered."""
    context.obj.delete(f"/deployments/{name}")
    console().print(f"{name} is deleted.")


@app.command()
def sleep(context: typer.Context, name: str) -> None:
    """Take a deployment off its device, once its running requests have ended."""
    context.obj.post(f"/deployments/{name}/sleep")
    console().print(f"{name} sleeps.")


@app.command()
def wake(context: typer.Context, name: str) -> None:
    """Bring a deployment to its device."""
    context.obj.post(f"/deployments/{name}/wake")
    console().print(f"{name} is resident.")
