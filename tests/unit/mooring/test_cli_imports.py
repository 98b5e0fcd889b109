"""A command is there at once: what only the server needs is not imported for it."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("fastapi", "grpc", "numpy", "sqlalchemy", "torch")


def test_the_command_line_imports_nothing_heavy() -> None:
    code = "import sys, mooring.cli; print(*sorted(set(sys.argv[1:]) & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", code, *HEAVY], capture_output=True, text=True, timeout=60)
    assert (ended.stdout, ended.stderr) == ("\n", "")
