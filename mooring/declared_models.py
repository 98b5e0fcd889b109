"""Pydantic's models of what is declared by dataclasses."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, create_model

from mooring.declared import Bounds, Declared, declared
from mooring.units import parse_bytes

__all__ = ["SIZE", "field_of", "with_fields_of"]

M = TypeVar("M", bound=BaseModel)

SIZE = BeforeValidator(lambda value: value if value is None else parse_bytes(value))
"""Reads a number of bytes as people write it, like 512MiB."""


def field_of(
    declaration: Declared,
    *,
    sizes_as_text: bool = False,
    may_be_none: bool = False,
    bounded: bool = True,
) -> tuple[Any, Any]:
    """Type and ``Field`` of a declared field.

    Args:
        sizes_as_text: whether numbers of bytes may be written like 512MiB.
        may_be_none: whether None is allowed, and the default, whatever the declaration says.
        bounded: whether the model checks the bounds; otherwise somebody else does.
    """
    bounds = declaration.bounds if declaration.bounds is not None and bounded else Bounds()
    limits = {name: limit for name in ("ge", "le", "gt") if math.isfinite(limit := getattr(bounds, name))}
    kind, default = declaration.kind, declaration.default
    if may_be_none:
        kind, default = declaration.value_kind | None, None
    if default is dataclasses.MISSING:
        default = ...
    if sizes_as_text and declaration.is_size:
        kind = Annotated[kind, SIZE]
    sentence = declaration.setting.sentence if declaration.setting else None
    return kind, Field(default, description=sentence, **limits)


def with_fields_of(
    part: type, *, sizes_as_text: bool = False, may_be_none: bool = False, bounded: bool = True
) -> Callable[[type[M]], type[M]]:
    """Decorates a model: it gets the fields of a dataclass that are set from outside, after its own. Arguments as
    in ``field_of``."""

    def extend(model: type[M]) -> type[M]:
        fields: dict[str, Any] = {
            each.setting.name or name: field_of(
                each, sizes_as_text=sizes_as_text, may_be_none=may_be_none, bounded=bounded
            )
            for name, each in declared(part).items()
            if each.setting is not None
        }
        return create_model(
            model.__name__, __base__=model, __module__=model.__module__, __doc__=model.__doc__, **fields
        )

    return extend
