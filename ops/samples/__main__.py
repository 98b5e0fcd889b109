"""``python -m ops.samples --out DIR``: the three samples. Its command ``random``: a model of a real shape."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table

from model_registry.progress import Progress as OnProgress
from mooring.errors import MooringError
from mooring.units import format_bytes
from ops.samples.catalog import ensure_samples
from ops.samples.random_model import make_random_model
from ops.samples.sample import Sample

app = typer.Typer(add_completion=False, help="Make models to try the server with.")
console = Console(stderr=True)

Out = Annotated[Path, typer.Option(help="Folder that the models go into; what it has already is kept.")]
ShapeName = Literal["SmolLM2-135M", "Qwen2.5-0.5B", "Llama-3.2-1B", "Llama-3.1-8B"]


@app.callback(invoke_without_command=True)
def samples(context: typer.Context, out: Out | None = None) -> None:
    """Make the three samples: SmolLM2, and two small models trained here in some minutes."""
    if context.invoked_subcommand is not None:
        return
    if out is None:
        raise typer.BadParameter("say where the models go", param_hint="--out")
    with _shown_progress() as on_progress:
        made = ensure_samples(out, on_progress)
    _print_table(made)


@app.command()
def random(
    shape: Annotated[ShapeName, typer.Option(help="The published model whose shape to take.")],
    out: Out,
    dtype: Annotated[Literal["bf16", "fp32"], typer.Option(help="Of the weights.")] = "bf16",
    seed: Annotated[int, typer.Option(help="Of the weights.", min=0)] = 0,
    tokenizer: Annotated[
        Path | None, typer.Option(help="A model folder to take the tokenizer from; else one is trained.")
    ] = None,
) -> None:
    """Make a model of a real shape with random weights, for work on speed."""
    with _shown_progress() as on_progress:
        made = make_random_model(shape, out, dtype, seed, tokenizer, on_progress)
    _print_table([made])


@contextmanager
def _shown_progress() -> Iterator[OnProgress]:
    """A bar for each stage, in the order in which they come."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def on_progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                for task in tasks.values():  # the stages before it are over
                    bars.update(task, total=1, completed=1)
                tasks[stage] = bars.add_task(stage)
            bars.update(tasks[stage], total=total or None, completed=done)

        yield on_progress


def _print_table(made: list[Sample]) -> None:
    table = Table("name", Column("folder", overflow="fold"), "context", "weights", "KV of a full context")
    for sample in made:
        table.add_row(
            sample.name,
            str(sample.folder),
            f"{sample.max_model_len} tokens",
            format_bytes(sample.weights_bytes),
            format_bytes(sample.kv_bytes),
        )
    Console().print(table)


def main() -> None:
    """Runs the command line; an error raised on purpose is one line and not a traceback."""
    try:
        app(prog_name="python -m ops.samples")
    except MooringError as error:
        console.print(f"[red]error:[/] {error.message}")
        sys.exit(1)


if __name__ == "__main__":
    main()
