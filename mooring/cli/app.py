"""The root of the command line: options shared by all commands, and the sub-commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mooring import __version__
from mooring.cli import (
    bench,
    classes,
    deployments,
    events,
    models,
    plan,
    queue,
    serve,
    slo,
    status,
    tenants,
    ui,
)
from mooring.cli.connection import Connection
from mooring.errors import MooringError

__all__ = ["app", "main"]

app = typer.Typer(
    name="mooring",
    help="Many language models on few devices, each tenant's latency target kept.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(serve.serve)
app.command()(ui.ui)
app.add_typer(models.app, name="models")
app.add_typer(deployments.app, name="deployments")
app.add_typer(tenants.app, name="tenants")
app.add_typer(classes.app, name="classes")
app.command()(status.status)
app.command()(queue.queue)
app.command()(slo.slo)
app.command()(events.events)
app.add_typer(plan.app, name="plan")
app.add_typer(bench.app, name="bench")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mooring {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    server: Annotated[
        str | None,
        typer.Option(
            help="The server's address; MOORING_SERVER or the one that uses the data folder if not given."
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="The server's data folder, where its admin key is.", file_okay=False)
    ] = None,
    client_certificate: Annotated[
        Path | None,
        typer.Option(
            help="PEM file with a certificate and its key, if the server wants clients to have one.",
            dir_okay=False,
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    context.obj = Connection(server, data_dir, client_certificate)


def main() -> None:
    """The console command: errors are one line on stderr and exit code 1."""
    try:
        app()
    except MooringError as error:
        typer.echo(f"mooring: {error.message}", err=True)
        sys.exit(1)
