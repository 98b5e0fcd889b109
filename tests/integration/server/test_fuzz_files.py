"""Some mutated files for each reader; ``make fuzz`` reads more of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

pytestmark = pytest.mark.integration


READERS = ("gguf", "safetensors", "tokenizer", "template")


def test_readers_answer_or_die(tmp_path: Path) -> None:
    program = ROOT / "tests" / "fuzz" / "strangers_files.py"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    ended = subprocess.run(
        [sys.executable, str(program), "--files", "40", "--seed", str(os.getpid())],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr[-4000:]
    for reader in READERS:
        (line,) = [each for each in ended.stdout.splitlines() if each.startswith(f"{reader}: 40 files: ")]
        assert "'refused': " in line
