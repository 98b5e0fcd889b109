"""The results that every benchmark leaves behind: ``report.md``, plots and ``results.json``."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["Report"]

_PACKAGES = ("mooring", "torch", "numpy", "grpcio")


class Report:
    """Collects the figures, tables and text of one run and writes them to a folder.

    ``results.json`` holds ``figures`` (numbers by the names that issues and docs quote), ``data`` (values
    that the plots were drawn from) and ``environment``.
    """

    def __init__(self, out: Path, title: str) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.out = out
        self._parts = [f"# {title}\n"]
        self._figures: dict[str, float] = {}
        self._data: dict[str, Any] = {}
        self._environment = environment()

    def text(self, paragraph: str) -> None:
        self._parts.append(paragraph.strip() + "\n")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        lines = ["| " + " | ".join(header) + " |", "| " + " | ".join("---" for _ in header) + " |"]
        lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
        self._parts.append("\n".join(lines) + "\n")

    def figure(self, name: str, value: float) -> None:
        self._figures[name] = value

    def data(self, name: str, value: object) -> None:
        self._data[name] = value

    def plot(self, name: str, caption: str) -> Path:
        """Path for a plot that the caller saves; the report shows it."""
        self._parts.append(f"![{caption}]({name}.png)\n")
        return self.out / f"{name}.png"

    def write(self) -> None:
        """Writes both files. Called once, at the end."""
        rows = [[f"`{name}`", value] for name, value in self._figures.items()]
        self._parts.append("## Figures\n")
        self.table(["figure", "value"], rows)
        self._parts.append("## Where and how\n")
        self.table(["", ""], [[key, value] for key, value in self._environment.items()])
        (self.out / "report.md").write_text("\n".join(self._parts))
        results = {"figures": self._figures, "data": self._data, "environment": self._environment}
        (self.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")


def environment() -> Mapping[str, str]:
    """Date, machine and versions."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 1000 else str(value)
