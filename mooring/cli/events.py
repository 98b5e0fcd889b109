"""``mooring events``: the memory manager's decisions, and the reasons for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any
from urllib.parse import urlencode

import orjson
import typer

from mooring.cli.output import Json, console, local_time, print_json, print_table
from mooring.units import format_bytes

__all__ = ["COLUMNS", "event_row", "events"]

COLUMNS = ("id#", "time", "event", "about", "reason", "figures")


def events(
    context: typer.Context,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as they come.")] = False,
    deployment: Annotated[str | None, typer.Option(help="Only those about this deployment.")] = None,
    kind: Annotated[
        list[str] | None, typer.Option(help="Only those of this kind, like evict (repeatable).")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Show so many of the past.")] = 50,
    json: Json = False,
) -> None:
    """Show what was decided and why: loads, sleeps, evictions, preemptions, refusals, failures."""
    asked: list[tuple[str, str | int]] = [("kind", each) for each in kind or ()]
    if deployment is not None:
        asked.append(("deployment", deployment))
    past = context.obj.get(f"/events?{urlencode([*asked, ('limit', limit)])}")
    if not follow:
        rows = [event_row(each) for each in reversed(past)]
        return print_json(past) if json else print_table(COLUMNS, rows, "Nothing was decided yet.")
    newest = [("after", past[0]["id"])] if past else [("after", 0)]
    for each in reversed(past):
        _print_line(each, json)
    for each in context.obj.events(f"/events/stream?{urlencode([*asked, *newest])}"):
        _print_line(each, json)
    return None


def event_row(event: Mapping[str, Any]) -> tuple[object, ...]:
    """One event as the cells of ``COLUMNS``."""
    about = event["replica"] or event["deployment"] or event["worker"] or event["device"]
    figures = _figures(event["figures"])
    return event["id"], local_time(event["at"]), event["kind"], about, event["reason"], figures


def _print_line(event: Mapping[str, Any], json: bool) -> None:
    if json:
        typer.echo(orjson.dumps(event).decode())
    else:
        console().print(*(cell for cell in event_row(event) if cell), soft_wrap=True)


def _figures(figures: Mapping[str, Any]) -> str:
    return ", ".join(_figure(name, value) for name, value in _known(figures))


def _known(figures: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    return ((name, value) for name, value in figures.items() if value != "")


def _figure(name: str, value: Any) -> str:
    if name.endswith("_bytes"):
        return f"{name.removesuffix('_bytes')} {format_bytes(value)}"
    if name.endswith("_s") and isinstance(value, int | float):
        return f"{name.removesuffix('_s')} {value:.3g} s"
    return f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
