"""Where a Python process spends its time, by py-spy: a flame graph, and a share for each part of the program."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from mooring.errors import ConfigurationError

__all__ = ["flame_graph", "shares"]

_RATE_HZ = 199  # not in step with timers


def flame_graph(pid: int, out: Path, duration_s: float) -> subprocess.Popen[bytes]:
    """Starts to record; the SVG (or, for a name that ends in ``.txt``, the collapsed stacks) is there when the
    process that is returned has ended.

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
    """The share of samples of each part: the deepest frame that names one of a part's files decides.

    Args:
        stacks: collapsed, one a line: frames from the outermost, separated by ``;``, and a count.
        parts: name to the pieces of file names that belong to it.
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
