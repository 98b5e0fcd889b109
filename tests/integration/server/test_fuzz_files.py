"""Some mutated files for each reader; ``make fuzz`` reads more of them."""

from __future__ import annotations

import os
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
        [sys.executable, str(program), reader, "--files", "40", "--seed", str(os.getpid())],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr[-4000:]
    assert f"{reader}: 40 files: " in ended.stdout
    assert "'refused': " in ended.stdout
