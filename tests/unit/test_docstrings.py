"""Docstrings that a newcomer understands at first reading do not begin with a riddle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from support.sources import parsed, sources

RIDDLE = re.compile(r"(Of|What|Those|These|Who|That|As|The same|Where|Some of)\b")
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def riddles(path: Path) -> Iterator[str]:
    """Place and first line of each docstring of a file that begins with a pronoun or a preposition."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, Documented) and RIDDLE.match(docstring := ast.get_docstring(node) or ""):
            line = getattr(node, "lineno", 1)
            yield f"{path}:{line} {docstring.splitlines()[0]}"


def test_docstrings_begin_with_a_noun_or_a_verb() -> None:
    read = list(sources())
    assert len(read) > 100
    assert [riddle for path in read for riddle in riddles(path)] == []
