"""The declaration of a value that is set from outside: type, default, bounds and a sentence, written down once.

A part keeps such values as fields of a frozen dataclass and marks each in its annotation::

    period_s: Annotated[float, Bounds(gt=0), Setting("Time between two readings of a device.")] = 0.5

Whoever reads, checks, stores or explains them asks the dataclass (``declared``) instead of naming them again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from types import MappingProxyType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mooring.errors import ConfigurationError

__all__ = [
    "Bounds",
    "Declared",
    "Setting",
    "broken_rule",
    "check_bounds",
    "declared",
    "settings_of",
    "with_optional_fields_of",
]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bounds:
    """The range of a number, both ends included.

    Attributes:
        ge: the least value.
        le: the largest value.
        gt: a limit that the value must exceed.
    """

    ge: float = -math.inf
    le: float = math.inf
    gt: float = -math.inf

    def holds(self, value: float) -> bool:
        """Whether a value is in the range."""
        return self.ge <= value <= self.le and (value > self.gt or math.isinf(self.gt))

    def __str__(self) -> str:
        low = f"at least {self.ge:g}" if math.isinf(self.gt) else f"more than {self.gt:g}"
        if math.isinf(self.le):
            return low
        high = f"at most {self.le:.15g}"
        return high if math.isinf(self.ge) and math.isinf(self.gt) else f"{low} and {high}"


@dataclass(frozen=True, slots=True)
class Setting:
    """Marks a field that is set from outside.

    Attributes:
        sentence: what the value is, for whoever sets it.
        name: its name outside; None if that is the field's own.
        off: for a flag, the word for false on a command line; None for ``no-`` and its name.
    """

    sentence: str
    name: str | None = None
    off: str | None = None


@dataclass(frozen=True, slots=True)
class Declared:
    """One field of a dataclass, as it is declared.

    Attributes:
        name: the field's own name.
        kind: its type, without what the annotation adds to it.
        default: its default; ``dataclasses.MISSING`` if it has none.
        bounds: the range of its values; None if every value will do.
        setting: how it is set from outside; None if it is not.
    """

    name: str
    kind: Any
    default: Any
    bounds: Bounds | None
    setting: Setting | None

    @property
    def is_optional(self) -> bool:
        """Whether None is one of its values."""
        return get_origin(self.kind) in (Union, UnionType) and type(None) in get_args(self.kind)

    @property
    def value_kind(self) -> Any:
        """Its type without None."""
        (kind,) = (
            (each for each in get_args(self.kind) if each is not type(None))
            if self.is_optional
            else (self.kind,)
        )
        return kind

    @property
    def is_size(self) -> bool:
        """Whether it is a number of bytes, which people write like 512MiB."""
        return self.name.endswith("_bytes")


@cache
def declared(kind: type) -> Mapping[str, Declared]:
    """The fields of a dataclass by name, in their order."""
    hints = get_type_hints(kind, include_extras=True)
    return MappingProxyType(
        {each.name: _read(each.name, hints[each.name], each.default) for each in fields(kind)}
    )


def _read(name: str, hint: Any, default: Any) -> Declared:
    notes: tuple[Any, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *rest = get_args(hint)
        notes = tuple(rest)
    bounds = next((note for note in notes if isinstance(note, Bounds)), None)
    setting = next((note for note in notes if isinstance(note, Setting)), None)
    return Declared(name, hint, default, bounds, setting)


def with_optional_fields_of(part: type) -> Callable[[type[T]], type[T]]:
    """Decorates the class of a dataclass, before ``dataclass`` does: it gets the fields of ``part`` that are set from
    outside, each None if it is left out."""

    def extend(kind: type[T]) -> type[T]:
        for name, each in declared(part).items():
            if each.setting is not None:
                kind.__annotations__[name] = each.value_kind | None
                setattr(kind, name, None)
        return kind

    return extend


def settings_of(config: object) -> dict[str, Any]:
    """The values of a configuration, a dataclass, that are set from outside, by the fields' own names."""
    part: type = type(config)
    return {name: getattr(config, name) for name, each in declared(part).items() if each.setting}


def broken_rule(field: Declared, value: object) -> str | None:
    """The rule that a value of a field breaks, as a phrase after "must be"; None if it is allowed. Looks at types as
    well as at ranges, since values may come from JSON."""
    if value is None and field.is_optional:
        return None
    kind, bounds = field.value_kind, field.bounds or Bounds()
    if kind is bool:
        return None if isinstance(value, bool) else "true or false"
    if get_origin(kind) is Literal:
        return None if value in get_args(kind) else f"one of {', '.join(get_args(kind))}"
    is_whole = kind is int
    is_number = isinstance(value, int if is_whole else int | float) and not isinstance(value, bool)
    if isinstance(value, int | float) and is_number and math.isfinite(value) and bounds.holds(value):
        return None
    return f"a whole number from {bounds.ge} to {bounds.le}" if is_whole else f"a number, {bounds}"


def check_bounds(config: object) -> None:
    """Checks the numbers and the words of a configuration, a dataclass.

    Raises:
        ConfigurationError: a value is not allowed; ``param`` names the field.
    """
    part: type = type(config)
    for name, field in declared(part).items():
        value = getattr(config, name)
        if field.bounds is not None and value is not None and not field.bounds.holds(value):
            raise ConfigurationError(f"{name} is {value} and must be {field.bounds}", param=name)
        if get_origin(field.kind) is Literal and value not in (words := get_args(field.kind)):
            raise ConfigurationError(f"{name} is {value!r} and must be {' or '.join(words)}", param=name)
