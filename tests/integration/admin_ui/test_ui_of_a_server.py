"""The web UI's process beside a server: found by a link, started again, and no burden to what serves."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from support.running_server import RunningServer
from support.small_checkpoint import NULL_ENVIRONMENT, write_checkpoint
from support.ui_server import server_with_ui, ui_address
from support.until import until

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "a")


@pytest.fixture(scope="module")
def served(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningServer, str]]:
    data_dir = tmp_path_factory.mktemp("s") / "data"
    with server_with_ui(data_dir, {"a": checkpoint}, ["--engine", "null"], NULL_ENVIRONMENT) as found:
        yield found


def mooring(server: RunningServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mooring.cli", "--data-dir", str(server.data_dir), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def ui_process(server: RunningServer) -> psutil.Process:
    children = psutil.Process(server.process.pid).children()
    return next(each for each in children if "admin_ui" in each.cmdline())


def answers(server: RunningServer) -> bool:
    body = {"model": "a", "prompt": "x", "max_tokens": 2}
    return server.client.post(f"{server.http_url}/v1/completions", json=body).status_code == 200


def test_a_link_from_the_command_line_logs_in_once(served: tuple[RunningServer, str]) -> None:
    server, address = served
    said = mooring(server, "ui", "--no-browser").stdout
    assert server.admin_key not in said
    link = said.split()[-1]
    assert link.startswith(f"{address}/#link=")
    with httpx.Client(base_url=address, headers={"origin": address}, trust_env=False) as client:
        given = {"link": link.partition("#link=")[2]}
        assert client.post("/login", json=given).status_code == 200
        assert client.get("/api/deployments").json()[0]["name"] == "a"
        assert client.post("/login", json=given).status_code == 401


def test_the_socket_for_links_is_its_users_alone(served: tuple[RunningServer, str]) -> None:
    server, address = served
    path = server.data_dir / "ui.sock"
    assert path.stat().st_mode & 0o077 == 0
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
        assert client.post("http://ui/links", json={"key": "wrong"}).status_code == 401
    with httpx.Client(base_url=address, headers={"origin": address}, trust_env=False) as client:
        assert client.post("/links", json={"key": server.admin_key}).status_code == 404


def test_the_process_has_no_key(served: tuple[RunningServer, str]) -> None:
    server, _ = served
    process = ui_process(server)
    assert server.admin_key not in " ".join(process.cmdline())
    assert server.admin_key not in str(process.environ())


def test_serving_goes_on_without_it_and_it_comes_back(served: tuple[RunningServer, str]) -> None:
    server, _ = served
    killed = ui_process(server)
    killed.kill()
    psutil.wait_procs([killed], 20)
    assert answers(server)
    until(lambda: server.log().count("web UI on") == 2, "it is started again")
    assert httpx.get(f"{ui_address(server)}/session", trust_env=False).json() == {"token": None}


def test_a_port_that_is_taken_is_told_and_the_server_serves(checkpoint: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        flags = ["--engine", "null", "--ui", "--ui-port", port]
        with RunningServer(tmp_path / "data", {"a": checkpoint}, flags, NULL_ENVIRONMENT) as server:
            until(lambda: "no web UI" in server.log(), "it is told", timeout_s=60)
            assert f"127.0.0.1:{port}" in server.log()
            assert answers(server)
            alone = mooring(server, "ui", "--no-browser", "--port", port)
            assert alone.returncode == 1
            assert "cannot listen" in alone.stderr


def test_it_ends_with_a_server_that_is_killed(checkpoint: Path, tmp_path: Path) -> None:
    with server_with_ui(tmp_path / "data", {"a": checkpoint}, ["--engine", "null"], NULL_ENVIRONMENT) as (
        server,
        _,
    ):
        process = ui_process(server)
        server.kill()
        psutil.wait_procs([process], 20)
        assert not process.is_running()
