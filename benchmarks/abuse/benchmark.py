"""How much one client can take from the others: attacks by door, and what a good client notices of each.

``mooring bench abuse --out DIR``. The bar for each cell: at most 100 ms of stall beyond that of as long a time
without an attack, at most 64 MiB of memory kept, and the good stream's text unaltered.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.abuse.attacks import Caller, Cell, cells
from benchmarks.abuse.measure import Run, measure
from benchmarks.abuse.victims import Victims
from benchmarks.report import Report
from mooring.units import MIB

__all__ = ["AbuseLoad", "Result", "main"]

MAX_STALL_MS = 100.0
MAX_KEPT_BYTES = 64 * MIB


@dataclass(frozen=True, slots=True)
class AbuseLoad:
    """Amounts of everything but the attacks, which always have their worst size.

    Attributes:
        num_runs: runs of each attack; the median counts.
        hold_s: seconds for which an attack that waits holds what it has.
    """

    num_runs: int = 5
    hold_s: float = 3.0

    @classmethod
    def quick(cls) -> AbuseLoad:
        """One run of each: shows whether it works."""
        return cls(1, 0.3)


@dataclass(frozen=True, slots=True)
class Result:
    """The runs of one cell."""

    cell: Cell
    runs: Sequence[Run]

    @property
    def stall_ms(self) -> float:
        """The longest stall beyond that of a quiet time, median of the runs."""
        return max(0.0, statistics.median(run.stall_ms - run.quiet_stall_ms for run in self.runs))

    @property
    def kept_bytes(self) -> int:
        """Memory that all runs together left behind."""
        return max(0, self.runs[-1].kept_bytes)

    @property
    def altered(self) -> int:
        """Number of runs in which the good stream was altered."""
        return sum(run.is_altered for run in self.runs)

    @property
    def is_good(self) -> bool:
        return self.stall_ms <= MAX_STALL_MS and self.kept_bytes <= MAX_KEPT_BYTES and not self.altered

    def __str__(self) -> str:
        answers: dict[str, int] = {}
        for run in self.runs:
            for answer, number in run.answers.items():
                answers[answer] = answers.get(answer, 0) + number
        became = ", ".join(f"{number} x {answer}" for answer, number in answers.items())
        return (
            f"{'ok  ' if self.is_good else 'MISS'} {self.cell.name}: {self._figures()}, at most "
            f"{max(run.peak_bytes for run in self.runs) / MIB:.0f} MiB ({became})"
        )

    def _figures(self) -> str:
        harm = ", DIED" if self.runs[-1].died else ", altered" if self.altered else ""
        return f"{self.stall_ms:.0f} ms, {self.kept_bytes / MIB:.0f} MiB kept{harm}"

    def in_table(self) -> str:
        return self._figures() if self.is_good else f"**{self._figures()}**"


def main(out: Path, load: AbuseLoad, only: Collection[str], show: Callable[[str], None]) -> dict[str, float]:
    """Runs the attacks and writes the report; returns the figures, of which ``missed`` is the number of cells
    beyond the bar.

    Args:
        only: names of attacks, or beginnings of names of cells; all if empty.
        show: called with a line for each cell as it is known.

    Raises:
        ConfigurationError: there is no such attack.
    """
    by_server: dict[tuple[str, Caller, int | None], list[Cell]] = {}
    for cell in cells(only):
        by_server.setdefault((cell.attack, cell.caller, cell.max_files), []).append(cell)
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="mooring-bench-") as name:
        victims = Victims(Path(name), load.hold_s)
        for together in by_server.values():
            for result in _results(victims, together, load.num_runs):
                results.append(result)
                show(str(result))
    return _report(out, load, results)


def _results(victims: Victims, together: Sequence[Cell], num_runs: int) -> Iterator[Result]:
    """Measures cells on one server, and on a new one after each that misses the bar."""
    rest = list(together)
    while rest:
        with victims.target(rest[0].caller, rest[0].max_files) as target:
            is_good = True
            while rest and is_good:
                cell = rest.pop(0)
                result = Result(cell, measure(victims, target, cell.make, num_runs))
                is_good = result.is_good
                yield result


def _report(out: Path, load: AbuseLoad, results: Sequence[Result]) -> dict[str, float]:
    report = Report(out, "What one client can take from the others")
    report.text(
        "A client asks `/health/live` every 10 ms, each time over a new connection, and reads a stream of the null "
        "engine, while another attacks. In each cell: the longest time from when an answer was due to when it "
        f"came, median of {load.num_runs} runs, less the same without an attack, the two taking turns; the "
        "memory that the server's processes hold more than before, once it has stopped falling; models that an "
        "attack registered are deleted by then, and theirs is not counted. Bold cells miss "
        f"the bar: {MAX_STALL_MS:.0f} ms, {MAX_KEPT_BYTES // MIB} MiB, and the stream's text unaltered. The "
        "doors of an attack share a server, until one misses the bar."
    )
    callers = [caller for caller in Caller if any(each.cell.caller is caller for each in results)]
    by_place: dict[tuple[str, str], dict[Caller, Result]] = {}
    for each in results:
        by_place.setdefault((each.cell.attack, each.cell.door), {})[each.cell.caller] = each
    rows = [
        [*place, *(found[caller].in_table() if caller in found else "" for caller in callers)]
        for place, found in by_place.items()
    ]
    report.table(["attack", "door", *(caller.value for caller in callers)], rows)
    figures = {
        "worst_stall_ms": max(each.stall_ms for each in results),
        "kept_mib": max(each.kept_bytes for each in results) / MIB,
        "altered": float(sum(each.altered for each in results)),
        "missed": float(sum(not each.is_good for each in results)),
        "cells": float(len(results)),
    }
    for name, value in figures.items():
        report.figure(name, value)
    report.data("cells", {each.cell.name: _data(each) for each in results})
    report.write()
    return figures


def _data(result: Result) -> Mapping[str, Any]:
    return {
        "worst_stall_ms": result.stall_ms,
        "kept_mib": result.kept_bytes / MIB,
        "altered": result.altered,
        "is_good": result.is_good,
        "runs": [asdict(run) for run in result.runs],
    }
