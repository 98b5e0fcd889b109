"""The record of TensorRT-LLM's API, and what holds calls and attributes to it."""

from __future__ import annotations

import inspect
import json
import os
import re
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
VERSION_VARIABLE = "TENSORRT_LLM_DOUBLE_VERSION"
_SCALARS: Mapping[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (float, int),
    "bool": (bool,),
    "str": (str,),
    "dict": (dict,),
    "NoneType": (type(None),),
}


def version() -> str:
    """The version that the double pretends to be."""
    return os.environ.get(VERSION_VARIABLE, "1.4.0")


class Record:
    """The record: parameters of calls and types of attributes.

    Attributes:
        calls: parameters by name, by ``Class.call``; each has a ``type``, and a ``default`` unless it is required.
        attributes: types, by ``Class.attribute``.
        since: the first version, by use.
        used: what was called or read, as ``ops.tensorrt_llm_record.uses`` names it.
    """

    def __init__(self, made: Mapping[str, Any], by_hand: Mapping[str, Any]) -> None:
        self.calls: dict[str, dict[str, Any]] = {name: dict(each) for name, each in made["calls"].items()}
        self.attributes: dict[str, str] = dict(made["attributes"])
        for name, call in by_hand["calls"].items():
            self.calls.setdefault(name, {}).update(call.get("parameters", {}))
        for name, attribute in by_hand["attributes"].items():
            self.attributes[name] = attribute["type"]
        self.since: dict[str, str] = by_hand["since"]
        self.used: set[str] = set()

    def names(self) -> set[str]:
        """Everything that it states, as ``ops.tensorrt_llm_record.uses`` names it."""
        arguments = {f"{name}({each})" for name, call in self.calls.items() for each in call}
        return {*self.attributes, *(f"{name}()" for name in self.calls), *arguments}

    def bind(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Holds a call to the record; returns its arguments, defaults included.

        Raises:
            TypeError: an argument has another name or type, or a required one is missing.
        """
        if name not in self.calls:
            raise TypeError(f"{name} is not in the record")
        stated = self.calls[name]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD if len(args) else inspect.Parameter.KEYWORD_ONLY
        ordered = sorted(stated.items(), key=lambda each: "default" in each[1])
        signature = inspect.Signature(
            [
                inspect.Parameter(each, kind, default=how.get("default", inspect.Parameter.empty))
                for each, how in ordered
            ]
        )
        bound = signature.bind(*args, **kwargs)
        for argument, value in bound.arguments.items():
            self.note(f"{name}({argument})")
            if not fits(value, stated[argument]["type"]):
                raise TypeError(f"{name}({argument}={value!r}) is no {stated[argument]['type']}")
        self.note(f"{name}()")
        bound.apply_defaults()
        return {each: None if value == "None" else value for each, value in bound.arguments.items()}

    def read(self, name: str) -> None:
        """Holds the reading of an attribute to the record; raises ``AttributeError`` for one that is not in it."""
        if name not in self.attributes:
            raise AttributeError(f"{name} is not in the record")
        self.note(name)

    def note(self, use: str) -> None:
        """Notes a use; raises ``TypeError`` for one that this version does not have."""
        if use in self.since and _numbers(version()) < _numbers(self.since[use]):
            raise TypeError(f"{version()} has no {use}")
        self.used.add(use)


@cache
def record() -> Record:
    """The record of this process."""
    by_hand = tomllib.loads((_HERE / "by_hand.toml").read_text())
    return Record(json.loads((_HERE / "record.json").read_text()), by_hand)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)[:2]))


def fits(value: Any, annotation: str) -> bool:
    """Whether a value is of a type that is written so; where the package makes objects of mappings, they fit too."""
    annotation = annotation.strip()
    for word in ("Optional", "Union"):
        if annotation.startswith(f"{word}[") and annotation.endswith("]"):
            parts = _split(annotation[len(word) + 1 : -1])
            return (word == "Optional" and value is None) or any(fits(value, part) for part in parts)
    if annotation.startswith(("List[", "list[")):
        return isinstance(value, list) and all(fits(each, annotation[5:-1]) for each in value)
    if annotation.startswith("Literal["):
        return value in [part.strip(" '\"") for part in _split(annotation[8:-1])]
    if annotation in _SCALARS:
        return isinstance(value, _SCALARS[annotation]) and (annotation == "bool" or value is not True)
    name = annotation.rpartition(".")[2]
    return type(value).__name__ == name or ("llm_args" in annotation and isinstance(value, dict))


def _split(text: str) -> list[str]:
    """The parts between commas that stand in no bracket."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts
