"""Tables for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

import orjson
import typer
from rich.console import Console
from rich.table import Table

__all__ = ["Json", "console", "local_time", "print_json", "print_table", "seconds"]

Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def console() -> Console:
    """The console for tables: stdout. Text is shown as it is: a reason may hold anything, brackets too."""
    return Console(highlight=False, markup=False, emoji=False)


def print_json(value: Any) -> None:
    typer.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())


def local_time(text: str) -> str:
    """A moment of the API's as tables show it: the time of day here, to the millisecond."""
    return datetime.fromisoformat(text).astimezone().strftime("%H:%M:%S.%f")[:-3]


def seconds(value: float | None) -> str | None:
    """A time as tables show it, to the millisecond."""
    return None if value is None else f"{value:.3f} s"


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """Prints a table, or the sentence ``empty`` if there are no rows. Columns that end in ``#`` hold
    numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        justify: Literal["left", "right"] = "right" if column.endswith("#") else "left"
        table.add_column(column.removesuffix("#"), justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    console().print(table if table.row_count else empty)
