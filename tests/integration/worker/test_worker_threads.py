"""Which of a worker's threads compute in parallel."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

from benchmarks.random_models import SMALL_SHAPE, make_random_models
from engines.checkpoint.packing import pack

pytestmark = pytest.mark.integration


def test_no_thread_but_the_steps_keeps_helpers_to_compute_with(tmp_path: Path) -> None:
    """More of them than cores, and OpenMP lets all sleep between the parts of a step: it took twice as long."""
    [folder] = make_random_models(tmp_path, {**SMALL_SHAPE, "num_hidden_layers": 2}, ("m",), "bf16").values()
    pack(folder, tmp_path / "packed", "bf16", digest="0" * 64)
    program = [sys.executable, "-m", "support.count_helpers", str(tmp_path / "packed")]
    tests = ROOT / "tests"
    ended = subprocess.run(program, cwd=tests, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found == {"num_threads": 3, "built": 0, "woken": 0, "stepped": 2}
