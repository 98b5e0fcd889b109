"""Other people's clients in the versions that users have, against a real server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.paths import ROOT
from support.running_server import RunningServer
from support.small_checkpoint import NULL_ENVIRONMENT, write_checkpoint
from support.tiny_models import make_tiny_model

pytestmark = pytest.mark.integration

CHECKS = ROOT / "tests" / "clients"
OURS = Path(sys.executable)
OTHERS = ROOT / ".venv-clients" / "bin" / "python"  # `make test` makes it
CLIENTS = [
    pytest.param(OURS, "openai_checks", "openai", "3", id="openai-3"),
    pytest.param(OTHERS, "openai_checks", "openai", "2", id="openai-2", marks=pytest.mark.slow),
    pytest.param(OTHERS, "langchain_checks", "langchain_openai", "1", id="langchain", marks=pytest.mark.slow),
    pytest.param(OTHERS, "litellm_checks", "litellm", "1", id="litellm", marks=pytest.mark.slow),
    pytest.param(OTHERS, "llm_checks", "llm", "0", id="llm", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One model whose tokens take 20 ms each, so that a client can lose patience."""
    root = tmp_path_factory.mktemp("clients")
    environment = {**NULL_ENVIRONMENT, "MOORING_NULL__STEP_TIME_S": "0.02"}
    flags = ["--engine", "null", "--memory-budget", "64MiB"]
    with RunningServer(root / "data", {"a": write_checkpoint(root / "a")}, flags, environment) as running:
        yield running


def run(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert python.exists(), f"there is no {python}: `make test` makes it"
    return subprocess.run(
        [python, *arguments],
        cwd=CHECKS,
        env={
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/"),
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(("python", "module", "package", "major"), CLIENTS)
def test_what_its_users_do_works(
    server: RunningServer, python: Path, module: str, package: str, major: str
) -> None:
    name = package.replace("_", "-")
    version = run(python, "-c", f"from importlib.metadata import version; print(version('{name}'))").stdout
    assert version.split(".")[0] == major
    ended = run(python, "run_checks.py", module, server.http_url)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    wanted = (CHECKS / f"{module}.py").read_text().count("def check_")
    assert ended.stdout.count("ok check_") == wanted > 0


@pytest.fixture(scope="module")
def real_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One model that is computed, in blocks of memory."""
    root = tmp_path_factory.mktemp("real")
    model = make_tiny_model(root / "a", 0, max_position_embeddings=512)
    flags = ["--dtype", "float32", "--memory-budget", "64MiB"]
    with RunningServer(root / "data", {"a": model}, flags) as running:
        yield running


@pytest.mark.slow
@pytest.mark.parametrize("python", [OURS, OTHERS], ids=["openai-3", "openai-2"])
def test_leaving_a_stream_frees_the_blocks_of_a_real_engine(real_server: RunningServer, python: Path) -> None:
    ended = run(python, "run_checks.py", "cancel_checks", real_server.http_url)
    assert (ended.returncode, ended.stdout) == (0, "ok check_blocks_are_held_and_then_freed\n"), ended
