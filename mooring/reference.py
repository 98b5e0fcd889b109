"""Generates docs/configuration.md from the settings: ``python -m mooring.reference``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mooring.config import DeviceEntry, ModelEntry, Settings, section_of, variable_name
from mooring.units import MIB, format_bytes

__all__ = ["configuration_page"]

_HEAD = """\
# Configuration

Every setting can be given as a flag of `mooring serve` (where it has one), as a variable, or in a TOML
file (`--config FILE`, `MOORING_CONFIG`, or `mooring.toml` in the user's configuration folder). Flags
override variables, variables override the file, the file overrides defaults. A key that is not a setting is
an error. Sizes are written like `512MiB`, `2GiB` or `1.5GB`.

This page is generated from the code by `make docs`.
"""


def configuration_page() -> str:
    """The whole page as Markdown."""
    parts = [_HEAD]
    for title, prefix, sentence, section in _sections():
        parts.append(f"\n## {title}\n\n{sentence}\n\n| setting | variable | default | what it is |")
        parts.append("| --- | --- | --- | --- |")
        for name, field in section.model_fields.items():
            if not is_dataclass(field.annotation):
                variable = f"`{variable_name(prefix + name)}`"
                default = _default(name, field)
                parts.append(f"| `{prefix}{name}` | {variable} | {default} | {field.description} |")
    for title, entry in (("[[devices]]", DeviceEntry), ("[[models]]", ModelEntry)):
        parts.append(
            f"\n## `{title}`\n\n{_sentence(entry)}\n\n| key | default | what it is |\n| --- | --- | --- |"
        )
        for name, field in entry.model_fields.items():
            parts.append(f"| `{name}` | {_default(name, field)} | {field.description} |")
    return "\n".join(parts) + "\n"


def _sections() -> Iterator[tuple[str, str, str, type[BaseModel]]]:
    """Title, prefix of the settings' names, sentence and fields of each section."""
    yield "The server", "", _sentence(Settings), Settings
    for name, field in Settings.model_fields.items():
        if is_dataclass(part := field.annotation):
            yield f"`[{name}]`", f"{name}.", field.description or "", section_of(part)


def _sentence(section: type[BaseModel]) -> str:
    return " ".join((section.__doc__ or "").split())


def _default(name: str, field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return "the platform's"
    value: Any = field.default
    if value is None:
        return "unset"
    if value == ():
        return "none"
    if isinstance(value, int) and not isinstance(value, bool) and value >= MIB and int in _kinds(field):
        return f"`{format_bytes(value)}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _kinds(field: FieldInfo) -> tuple[Any, ...]:
    return get_args(field.annotation) or (field.annotation,)


if __name__ == "__main__":
    sys.stdout.write(configuration_page())
