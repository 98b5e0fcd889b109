"""A whole server in a cgroup that another process fills and leaves again: it shrinks, serves on, and grows back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.memory_cgroup import MemoryCgroup, memory_cgroup
from support.running_server import RunningServer
from support.small_checkpoint import NULL_ENVIRONMENT, write_checkpoint
from support.until import until

from mooring.units import GIB, MIB

pytestmark = pytest.mark.integration

HOG = (
    "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); block = bytearray(int(sys.argv[2])); "
    "block[::4096] = b'x' * len(block[::4096]); print('holds', flush=True); time.sleep(600)"
)
CONFIG = """
[others]
period_s = 0.1
margin = "64MiB"
grow_after_s = 0.5
"""


@contextmanager
def filled(group: MemoryCgroup, num_bytes: int) -> Iterator[None]:
    """Another process in the group holds so much."""
    command = [sys.executable, "-c", HOG, str(group.procs_file), str(num_bytes)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "holds\n"
            yield
        finally:
            process.kill()


@contextmanager
def server_in(group: MemoryCgroup, folder: Path, memory_budget: str) -> Iterator[RunningServer]:
    settings = folder / "mooring.toml"
    settings.write_text(CONFIG)
    with RunningServer(
        folder / "data",
        {"m": write_checkpoint(folder / "m")},
        ["--engine", "null", "--memory-budget", memory_budget, "--host-cache-budget", "64MiB"],
        NULL_ENVIRONMENT,
        settings,
        through=["sh", "-c", f'echo $$ > {group.procs_file} && exec "$@"', "sh"],
    ) as server:
        yield server


def others_bytes(server: RunningServer) -> int:
    (device,) = server.status()["devices"]
    owners: dict[str, int] = device["owners"]
    assert sum(owners.values()) <= device["budget_bytes"]
    return owners.get("others", 0)


def complete(server: RunningServer) -> int:
    body = {"model": "m", "prompt": "hello", "max_tokens": 4}
    return server.client.post(f"{server.http_url}/v1/completions", json=body).status_code


def test_a_server_makes_way_for_another_process_and_comes_back(tmp_path: Path) -> None:
    with memory_cgroup(2 * GIB) as group, server_in(group, tmp_path, "1GiB") as server:
        assert complete(server) == 200
        assert others_bytes(server) == 0
        with filled(group, 1500 * MIB):
            until(lambda: others_bytes(server) > 0)
            until(lambda: others_bytes(server) >= GIB - (2 * GIB - group.used_bytes))
            assert complete(server) == 200
        until(lambda: others_bytes(server) == 0)
        assert complete(server) == 200
        assert server.status()["devices"][0]["owners"]["kv:null-0"] > 900 * MIB
        assert len(server.admin("GET", "/events?kind=budget").json()) >= 2


@pytest.mark.slow
def test_copies_of_sleeping_models_go_where_that_is_not_enough(tmp_path: Path) -> None:
    """The null engine's KV is a number, so nothing but the host copy can really go."""
    with memory_cgroup(GIB) as group, server_in(group, tmp_path, "64MiB") as server:

        def residency() -> str:
            (found,) = server.status()["deployments"]
            return str(found["residency"])

        assert complete(server) == 200
        assert server.admin("POST", "/deployments/m/sleep").status_code == 204
        assert residency() == "warm"
        with filled(group, GIB - group.used_bytes - 20 * MIB):
            until(lambda: residency() == "cold")
            (dropped,) = server.admin("GET", "/events?kind=drop").json()
            assert dropped["figures"]["host_copy_bytes"] > 0
            assert "the host lacks" in server.admin("GET", "/events?kind=unload").json()[0]["reason"]
        until(lambda: others_bytes(server) == 0)
        assert complete(server) == 200
