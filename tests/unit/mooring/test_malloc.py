"""The C library's allocator after ``keep_little_free``, asked of a process of its own: what is set stays set."""

from __future__ import annotations

import subprocess
import sys

from support.paths import ROOT

PROGRAM = ROOT / "tests" / "support" / "count_arenas.py"


def counted(*arguments: str) -> tuple[int, int]:
    """Arenas that eight threads have made, and how many of ten blocks of 64 KiB were mapped one by one."""
    output = subprocess.run(
        [sys.executable, PROGRAM, *arguments], capture_output=True, check=True, timeout=60
    )
    num_arenas, num_mapped = map(int, output.stdout.split())
    return num_arenas, num_mapped


def test_threads_share_two_arenas_and_large_blocks_are_mapped_one_by_one() -> None:
    num_arenas, num_mapped = counted("keep little")
    assert num_arenas == 2
    assert num_mapped > 5  # the first of them may find room that is free already


def test_the_count_tells_what_is_set_from_what_is_not() -> None:
    num_arenas, num_mapped = counted()
    assert num_arenas > 2
    assert num_mapped == 0
