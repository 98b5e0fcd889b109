"""Docstrings that a newcomer understands at first reading do not begin with a riddle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
READ = (
    "memory_manager/arena",
    "memory_manager/kv",
    "memory_manager/policy",
    "memory_manager/watch",
    "router/request",
    "router/text",
)
"""Folders whose docstrings start with a noun or a verb and name what they count."""

RIDDLE = re.compile(r"(Of|What|Those|These|Who|That|As|The same|Where|Some of)\b")
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def riddles(path: Path) -> Iterator[str]:
    """Place and first line of each docstring of a file that begins with a pronoun or a preposition."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, Documented) and RIDDLE.match(docstring := ast.get_docstring(node) or ""):
            line = getattr(node, "lineno", 1)
            yield f"{path.relative_to(ROOT)}:{line} {docstring.splitlines()[0]}"


def test_docstrings_begin_with_a_noun_or_a_verb() -> None:
    paths = [path for folder in READ for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(paths) >= 2 * len(READ)
    assert [riddle for path in paths for riddle in riddles(path)] == []
