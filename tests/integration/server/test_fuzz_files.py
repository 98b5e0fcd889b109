"""Mutated files, for some seconds each; ``make fuzz`` does it for longer."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("reader", ["gguf", "safetensors", "tokenizer", "template"])
def test_a_reader_answers_or_dies(reader: str, tmp_path: Path) -> None:
    program = ROOT / "tests" / "fuzz" / "strangers_files.py"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    ended = subprocess.run(
        [sys.executable, str(program), reader, "--seconds", "4", "--seed", str(os.getpid())],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr[-4000:]
    told = re.search(rf"{reader}: (\d+) files .*'refused': (\d+)", ended.stdout)
    assert told is not None, ended.stdout
    assert int(told[1]) > 5
