"""Options of a command from what a dataclass declares, one for each field: a deployment's policy, an SLO class."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from mooring.declared import Declared, declared
from mooring.units import parse_bytes

__all__ = ["with_options_of"]


def with_options_of(part: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorates a command: its ``**`` parameter becomes an option for each field of a dataclass that is set from
    outside, and gets the values that were given, as the admin API names them."""
    fields = {_option_name(each): each for each in declared(part).values() if each.setting is not None}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**given: Any) -> None:
            values = {fields[name].name: given.pop(name) for name in fields}
            command(**given, **{name: value for name, value in values.items() if value is not None})

        own = inspect.signature(command, eval_str=True)
        parameters = [each for each in own.parameters.values() if each.kind is not each.VAR_KEYWORD]
        parameters += [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_option(each))
            for name, each in fields.items()
        ]
        run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        return run

    return decorate


def _option_name(field: Declared) -> str:
    """Sizes are written with a unit here, so their options do not name one."""
    return field.name.removesuffix("_bytes")


def _option(field: Declared) -> Any:
    assert field.setting is not None
    flag = _option_name(field).replace("_", "-")
    help_text = field.setting.sentence
    if field.is_size:
        return Annotated[
            int | None,
            typer.Option(f"--{flag}", parser=_size, metavar="SIZE", help=f"{help_text} Like 64MiB."),
        ]
    if field.value_kind is bool:
        off = field.setting.off or f"no-{flag}"
        return Annotated[bool | None, typer.Option(f"--{flag}/--{off}", help=help_text)]
    least = field.bounds.ge if field.bounds is not None else -1
    return Annotated[
        field.value_kind | None, typer.Option(f"--{flag}", min=least if least >= 0 else None, help=help_text)
    ]


def _size(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
