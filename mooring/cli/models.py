"""``mooring models``: registered models and their versions."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from mooring.cli.connection import Connection
from mooring.cli.output import Json, console, print_json, print_table
from mooring.errors import ArtifactError
from mooring.units import format_bytes

app = typer.Typer(help="Register, list and delete models.", no_args_is_help=True)

_POLL_S = 0.2


@app.command()
def register(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="What clients will put in `model`.")],
    source: Annotated[str, typer.Argument(help="A folder, a GGUF file, or hf://org/name@revision.")],
    deploy: Annotated[bool, typer.Option(help="Deploy it under the same name.")] = True,
    wait: Annotated[bool, typer.Option(help="Wait until it is registered, showing progress.")] = True,
    json: Json = False,
) -> None:
    """Register a model: checked, copied into the store, packed, deployed."""
    connection: Connection = context.obj
    if not source.startswith("hf://"):
        source = str(Path(source).expanduser().resolve())
    started = connection.post("/models", {"name": name, "source": source, "deploy": deploy})
    _tell(_wait(connection, started, show=not json) if wait else started, json=json)


@app.command()
def registrations(context: typer.Context, json: Json = False) -> None:
    """List registrations, the newest first: how far they are, or how they ended."""
    found = context.obj.get_all("/registrations")
    if json:
        return print_json(found)
    rows = [
        (r["id"], r["name"], r["state"], _progress(r), r["source"], r["error"] or "") for r in reversed(found)
    ]
    columns = ("id", "name", "state", "stage", "source", "error")
    return print_table(columns, rows, "Nothing was registered yet.")


@app.command()
def cancel(
    context: typer.Context,
    registration: Annotated[str, typer.Argument(help="Its id, as `mooring models registrations` shows it.")],
) -> None:
    """Cancel a registration and take back what it has registered; what was downloaded is kept."""
    found = context.obj.post(f"/registrations/{registration}/cancel")
    console().print(f"Registration {found['id']} of {found['name']} is {found['state']}.")


@app.command()
def resume(
    context: typer.Context,
    registration: Annotated[str, typer.Argument(help="Its id, as `mooring models registrations` shows it.")],
    wait: Annotated[bool, typer.Option(help="Wait until it is registered, showing progress.")] = True,
    json: Json = False,
) -> None:
    """Go on with a registration that failed, was cancelled or was interrupted by the server's end."""
    connection: Connection = context.obj
    started = connection.post(f"/registrations/{registration}/resume")
    _tell(_wait(connection, started, show=not json) if wait else started, json=json)


def _tell(found: dict[str, Any], *, json: bool) -> None:
    """Prints how a registration stands. Raises ``ArtifactError`` if it has ended without a model."""
    if json:
        print_json(found)
    state, name = found["state"], found["name"]
    if state not in ("running", "done"):
        raise ArtifactError(f"{name} is not registered: {found['error'] or state}")
    if not json:
        done = state == "done"
        console().print(f"{name} is registered." if done else f"Registration {found['id']} is running.")


def _progress(registration: dict[str, Any]) -> str:
    """The stage, and what is done of it where that is known."""
    total_bytes = registration["total_bytes"]
    if not total_bytes or registration["state"] == "done":
        return str(registration["stage"])
    return f"{registration['stage']} {registration['done_bytes'] / total_bytes:.0%}"


def _wait(connection: Connection, registration: dict[str, Any], show: bool) -> dict[str, Any]:
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not show,
    )
    with bar:
        task = bar.add_task("waiting", total=None)
        while registration["state"] == "running":
            bar.update(
                task,
                description=registration["stage"] or "waiting",
                completed=registration["done_bytes"],
                total=registration["total_bytes"] or None,
            )
            time.sleep(_POLL_S)
            registration = connection.get(f"/registrations/{registration['id']}")
    return registration


@app.command("list")
def list_models(context: typer.Context, json: Json = False) -> None:
    """List models."""
    models = context.obj.get_all("/models")
    if json:
        return print_json(models)
    rows = [(m["name"], m["versions"], ", ".join(m["deployments"]), m["created"]) for m in models]
    return print_table(("name", "versions#", "deployments", "created"), rows, "No models are registered.")


@app.command()
def show(context: typer.Context, name: str, json: Json = False) -> None:
    """Show a model's versions."""
    versions = context.obj.get(f"/models/{name}/versions")
    if json:
        return print_json(versions)
    rows = [
        (v["number"], v["digest"][:12], v["architecture"], f"{v['num_parameters']:,}", v["max_model_len"],
         format_bytes(v["num_bytes"]), v["source"])
        for v in versions
    ]  # fmt: skip
    columns = ("version#", "digest", "architecture", "parameters#", "context#", "size#", "source")
    return print_table(columns, rows, "No versions.")


@app.command()
def delete(context: typer.Context, name: str) -> None:
    """Delete a model and its versions; refused while a deployment uses it."""
    context.obj.delete(f"/models/{name}")
    console().print(f"{name} is deleted.")
