"""Schemathesis over the OpenAPI page of a running server: each call by itself, then calls that use what
earlier ones made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT
from support.running_server import RunningServer
from support.server_probes import check_idle
from support.small_checkpoint import NULL_ENVIRONMENT, write_checkpoint
from support.until import until

pytestmark = pytest.mark.integration

MAX_FUZZED_ITEMS = 64
CONFIGURATION = ROOT / "tests" / "fuzz" / "schemathesis.toml"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "a")


@pytest.fixture(scope="module")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    flags = ["--engine", "null", "--memory-budget", "64MiB"]
    data_dir = tmp_path_factory.mktemp("fuzz") / "data"
    with RunningServer(data_dir, {"a": checkpoint}, flags, NULL_ENVIRONMENT) as running:
        yield running


@pytest.mark.slow
@pytest.mark.parametrize(("phases", "max_time_s"), [("coverage,fuzzing", 30), ("stateful", 15)])
def test_no_call_breaks_the_page_or_the_server(
    server: RunningServer, checkpoint: Path, tmp_path: Path, phases: str, max_time_s: int
) -> None:
    (worker_pid,) = server.worker_pids()
    seed = ["--generation-deterministic"] if os.environ.get("CI") else []
    ended = subprocess.run(
        [
            Path(sys.executable).with_name("schemathesis"),
            *("--config-file", CONFIGURATION, "run", page_file(server, tmp_path), "--url", server.http_url),
            *("--header", f"authorization: Bearer {server.admin_key}"),
            *("--exclude-path", "/admin/v1/events/stream"),  # it never ends
            *("--phases", phases, "--max-time", str(max_time_s), "--max-examples", "10"),
            *("--request-timeout", "20", "--no-color", "--warnings", "off", *seed),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=max_time_s + 60,
    )
    assert ended.returncode == 0, ended.stdout[-12_000:] + ended.stderr
    assert server.worker_pids() == [worker_pid], "the worker is still the same process"
    check_idle(server)
    check_still_serves(server, checkpoint, name=f"after-{phases.replace(',', '-')}")


def page_file(server: RunningServer, folder: Path) -> Path:
    """The server's page without the bounds of its long lists.

    A list with one item too many is one of the first things that the fuzzer tries; of these it would be tens of
    megabytes, over which it takes minutes. Tests of the bodies' bounds try them.
    """
    page: dict[str, Any] = server.client.get(f"{server.http_url}/openapi.json").json()

    def shorten(part: Any) -> Any:
        if isinstance(part, list):
            return [shorten(each) for each in part]
        if isinstance(part, dict):
            return {
                name: shorten(value)
                for name, value in part.items()
                if not (name == "maxItems" and isinstance(value, int) and value > MAX_FUZZED_ITEMS)
            }
        return part

    file = folder / "openapi.json"
    file.write_text(json.dumps(shorten(page)))
    return file


def check_still_serves(server: RunningServer, checkpoint: Path, name: str) -> None:
    """What was there may have been deleted; a model registered now is served."""
    made = server.admin("POST", "/models", {"name": name, "source": str(checkpoint)})
    assert made.status_code == 202
    body = {"model": name, "prompt": "hello", "max_tokens": 2}
    until(
        lambda: server.client.post(f"{server.http_url}/v1/completions", json=body).status_code == 200,
        f"{name} is served",
    )
