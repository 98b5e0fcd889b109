"""The committed gRPC stubs are those of the .proto files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support.paths import ROOT


def test_the_committed_stubs_are_the_generated_ones(tmp_path: Path) -> None:
    protos = sorted((ROOT / "proto").rglob("*.proto"))
    assert protos
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}", *outputs, *map(str, protos)],
        check=True,
        timeout=60,
    )
    generated = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*.py*")}
    assert len(generated) == 3 * len(protos)
    stale = [str(name) for name, text in generated.items() if (ROOT / name).read_text() != text]
    assert stale == [], "run `make proto`"
