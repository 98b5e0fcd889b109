"""The time that a Python process spends, by py-spy: a flame graph, and a share for each part of the
program."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from mooring.errors import ConfigurationError

__all__ = ["flame_graph", "shares"]

_RATE_HZ = 199  # a prime, so that samples do not keep step with timers


def flame_graph(pid: int, out: Path, duration_s: float) -> subprocess.Popen[bytes]:
    """Starts to record. When the returned process has ended, the SVG is there (or, for a name that ends in
    ``.txt``, the collapsed stacks).

    Raises:
        ConfigurationError: py-spy is not installed.
    """
    beside_python = Path(sys.executable).with_name("py-spy")
    program = str(beside_python) if beside_python.exists() else shutil.which("py-spy")
    if program is None:
        raise ConfigurationError("the flame graph needs py-spy: pip install 'mooring[bench]'")
    kind = "raw" if out.suffix == ".txt" else "flamegraph"
    command = [program, "record", "--pid", str(pid), "--format", kind, "--output", str(out)]
    command += ["--rate", str(_RATE_HZ), "--duration", f"{duration_s:.0f}", "--nonblocking"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def shares(stacks: Path, parts: Mapping[str, tuple[str, ...]]) -> dict[str, float]:
    """The share of samples in each part; the deepest frame that names a file of a part decides.

    Args:
        stacks: collapsed stacks, one a line: frames from the outermost, separated by ``;``, and a count.
        parts: for each part's name, the pieces of file names that belong to it.
    """
    counts: Counter[str] = Counter()
    for line in stacks.read_text().splitlines():
        frames, _, count = line.rpartition(" ")
        counts[_part_of(frames.split(";"), parts)] += int(count)
    total = max(counts.total(), 1)
    return {name: count / total for name, count in counts.most_common()}


def _part_of(frames: list[str], parts: Mapping[str, tuple[str, ...]]) -> str:
    for frame in reversed(frames):
        for name, pieces in parts.items():
            if any(piece in frame for piece in pieces):
                return name
    return "other"
