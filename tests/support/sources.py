"""The project's own source files, read as text by tests that hold them to a rule."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from support.paths import ROOT

__all__ = ["parsed", "sources"]

PACKAGES = (
    "admin_ui",
    "benchmarks",
    "engines",
    "memory_manager",
    "model_registry",
    "mooring",
    "ops",
    "router",
)


def sources() -> Iterator[Path]:
    """Python files of the packages, generated stubs apart, as paths below the repository's root."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if "_pb2" not in path.name:
                yield path.relative_to(ROOT)


@cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of one of ``sources()``."""
    return ast.parse((ROOT / path).read_text())
