"""Loads that fail for real: a damaged file, a full disk, no memory. The others serve on, the ledger is exact,
the reason is told, and what can be mended is served without anybody asking."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.running_server import RunningServer
from support.server_probes import check_idle
from support.small_checkpoint import NULL_ENVIRONMENT, write_checkpoint
from support.until import until

pytestmark = pytest.mark.integration

NULL = ["--engine", "null", "--memory-budget", "30MiB"]
ENVIRONMENT = {**NULL_ENVIRONMENT, "MOORING_OTHERS__WATCH": "false"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A data folder whose store is on a disk of 72 MiB."""
    store = tmp_path / "data" / "store"
    store.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=72m", "tmpfs", store], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("only root can mount a small disk")
    try:
        yield tmp_path / "data"
    finally:
        subprocess.run(["umount", "-l", store], check=True)


def ask(server: RunningServer, name: str) -> tuple[int, str]:
    body = {"model": name, "prompt": "hello", "max_tokens": 2}
    answer = server.client.post(f"{server.http_url}/v1/completions", json=body)
    return answer.status_code, answer.text


def state(server: RunningServer, name: str) -> tuple[str, str]:
    (found,) = [each for each in server.status()["deployments"] if each["name"] == name]
    return found["residency"], found["reason"] or ""


def weights_owners(server: RunningServer) -> set[str]:
    """Names of the deployments whose weights have a lease."""
    owners = server.status()["devices"][0]["owners"]
    return {
        owner.removeprefix("weights:").partition("/")[0] for owner in owners if owner.startswith("weights:")
    }


def failures(server: RunningServer, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = server.admin("GET", f"/events?kind=failure&deployment={name}").json()
    return found


def test_a_damaged_file_fails_its_model_alone_and_is_tried_again(tmp_path: Path) -> None:
    models = {name: write_checkpoint(tmp_path / name, seed) for seed, name in enumerate("ab")}
    with RunningServer(tmp_path / "data", models, NULL, ENVIRONMENT) as server:
        assert ask(server, "a")[0] == 200
        packed = list((tmp_path / "data" / "store" / "packed").glob("*/weights.bin"))
        whole = {path: path.read_bytes() for path in packed}
        for path in packed:
            os.truncate(path, len(whole[path]) // 2)
        status, text = ask(server, "b")
        assert status == 503
        assert "weights.bin has" in text
        assert state(server, "b")[0] == "failed"
        assert "weights.bin has" in state(server, "b")[1]
        assert weights_owners(server) == {"a"}
        assert ask(server, "a")[0] == 200
        (failure,) = failures(server, "b")
        assert (failure["figures"]["num_failures"], failure["figures"]["retry_in_s"]) == (1, 1.0)
        time.sleep(1.1)
        assert ask(server, "b")[0] == 503
        assert failures(server, "b")[0]["figures"]["retry_in_s"] == 2.0
        for path, content in whole.items():
            path.write_bytes(content)
        until(lambda: ask(server, "b")[0] == 200, "the file is whole again")
        assert server.admin("GET", "/events?kind=retry&deployment=b").json()
        assert server.status()["ledger_mismatches"] == 0
        check_idle(server)


@pytest.mark.slow
def test_a_full_disk_fails_a_registration_and_a_start_and_heals(small_disk: Path, tmp_path: Path) -> None:
    models = {name: write_checkpoint(tmp_path / name, seed) for seed, name in enumerate("ab")}
    filler = small_disk / "store" / "filler"
    with RunningServer(small_disk, models, NULL, ENVIRONMENT) as server:
        assert ask(server, "a")[0] == 200
        fill(filler)
        source = write_checkpoint(tmp_path / "c", 9)
        started = server.admin("POST", "/models", {"name": "c", "source": str(source)}).json()
        path = f"/registrations/{started['id']}"
        until(lambda: server.admin("GET", path).json()["state"] != "running", "the registration ends")
        ended = server.admin("GET", path).json()
        assert ended["state"] == "failed"
        assert "of disk" in ended["error"]
        assert ask(server, "a")[0] == 200
    for packed in (small_disk / "store" / "packed").iterdir():
        if packed.is_dir():
            shutil.rmtree(packed)
    fill(filler)
    with RunningServer(small_disk, {}, NULL, ENVIRONMENT) as server:
        residency, reason = state(server, "b")
        assert residency == "failed"
        assert "No space left" in reason
        assert ask(server, "b")[0] == 503
        assert failures(server, "b")[-1]["figures"]["retry_in_s"] == 1.0
        filler.unlink()
        until(lambda: ask(server, "b")[0] == 200, "it is served without anybody asking")
        until(lambda: ask(server, "a")[0] == 200, "and so is the other")
        assert server.status()["ledger_mismatches"] == 0


def fill(filler: Path) -> None:
    """Leaves no byte of the disk."""
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(1 << 16)):
            pass


@pytest.mark.slow
def test_a_worker_without_memory_fails_the_load_or_the_wake_and_serves_what_it_has(tmp_path: Path) -> None:
    """The worker's address space is bounded to what it has: new memory is refused by the kernel."""
    models = {name: write_checkpoint(tmp_path / name, seed) for seed, name in enumerate("ab")}
    flags = ["--memory-budget", "64MiB", "--dtype", "float32"]
    environment = {**ENVIRONMENT, "MOORING_TORCH__CPU_WAKE": "remap"}
    with RunningServer(tmp_path / "data", models, flags, environment) as server:
        assert ask(server, "a")[0] == 200
        (pid,) = server.worker_pids()
        worker = psutil.Process(pid)
        worker.rlimit(psutil.RLIMIT_AS, (worker.memory_info().vms, psutil.RLIM_INFINITY))
        status, text = ask(server, "b")
        assert status == 503, text
        assert state(server, "b")[0] in ("failed", "cold", "warm")
        worker.rlimit(psutil.RLIMIT_AS, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))
        assert ask(server, "a")[0] == 200
        assert server.worker_pids() == [pid]
        assert weights_owners(server) == {"a"}
        until(lambda: ask(server, "b")[0] == 200, "there is memory again")
        assert server.status()["ledger_mismatches"] == 0
