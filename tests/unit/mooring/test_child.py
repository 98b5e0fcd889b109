"""Limits of child processes, and what they inherit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from mooring.child import child_environment
from mooring.units import MIB

_LIMITED = "from mooring.child import Limits, limit_this_process; limit_this_process(Limits({}, {}));"


def _run(limits: tuple[int, int | None], code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _LIMITED.format(*limits) + code], capture_output=True, text=True, check=False
    )


def test_memory_ends_at_the_limit() -> None:
    ended = _run((256 * MIB, None), "bytes(512 << 20)")
    assert ended.returncode == 1
    assert "MemoryError" in ended.stderr


def test_computing_ends_at_the_limit() -> None:
    ended = _run((256 * MIB, 1), "9**(9**9)")
    assert ended.returncode in (-signal.SIGXCPU, -signal.SIGKILL)


def test_no_core_is_dumped() -> None:
    code = "import resource; print(resource.getrlimit(resource.RLIMIT_CORE))"
    assert _run((256 * MIB, None), code).stdout.strip() == "(0, 0)"


def test_secrets_are_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "MOORING_DATABASE_URL", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "a secret")
    for name in ("DB_PASS", "MYSQL_PWD", "SSH_PASSPHRASE"):
        monkeypatch.setenv(name, "a secret")
    for name in ("https_proxy", "ALL_PROXY", "PIP_INDEX_URL"):
        monkeypatch.setenv(name, "http://user:a-password@example.test:3128")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    environment = child_environment({"CUDA_VISIBLE_DEVICES": "0", "OMP_NUM_THREADS": "1"})
    assert "a secret" not in environment.values()
    assert not any("a-password" in value for value in environment.values())
    downloading = child_environment(downloads=True)
    assert "a-password" in downloading["https_proxy"]
    assert "a secret" not in downloading.values()
    assert environment["CUDA_VISIBLE_DEVICES"] == "1"
    assert environment["PATH"] == os.environ["PATH"]
