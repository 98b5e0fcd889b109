"""What dies around a running server: its clients, its worker, a second server, and itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.running_server import RunningServer
from support.server_probes import SLOW_STEP, Stream, check_all_gone, complete, family
from support.small_checkpoint import NULL_ENVIRONMENT, write_checkpoint
from support.until import until

pytestmark = pytest.mark.integration

NULL = ["--engine", "null", "--memory-budget", "64MiB"]
SLOW = {**NULL_ENVIRONMENT, **SLOW_STEP}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("failures") / "a")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[RunningServer]:
    data_dir = tmp_path_factory.mktemp("anyone") / "data"
    flags = [*NULL, "--http-host", "0.0.0.0", "--behind-proxy", "--allow-anonymous"]
    with RunningServer(data_dir, {"a": checkpoint}, flags, SLOW) as running:
        yield running


def test_anonymous_clients_are_served_everywhere_where_that_is_wanted(
    server: RunningServer,
) -> None:
    assert complete(server).status_code == 200
    assert complete(server, "sk-none").status_code == 200


def test_a_second_server_on_the_same_data_folder_is_refused(server: RunningServer) -> None:
    second = RunningServer(server.data_dir, {}, NULL)
    try:
        assert second.process.wait(20) == 1
        assert f"another server uses the data folder {second.data_dir}" in second.log()
    finally:
        second.kill()
        second.client.close()
    assert complete(server).status_code == 200


def num_running(server: RunningServer) -> float:
    headers = {"x-api-key": server.admin_key}
    for line in server.client.get(f"{server.http_url}/metrics", headers=headers).text.splitlines():
        if line.startswith('vllm:num_requests_running{engine="0",model_name="a"}'):
            return float(line.split()[-1])
    raise AssertionError("the metric is missing")


def test_a_client_that_goes_away_frees_what_it_held(server: RunningServer) -> None:
    stream = Stream(server, max_tokens=400)
    stream.read(1)
    assert num_running(server) == 1
    stream.close()
    until(lambda: num_running(server) == 0, timeout_s=7)  # less than the answer takes


def test_a_killed_worker_is_replaced_and_its_streams_go_on(server: RunningServer) -> None:
    undisturbed = Stream(server, max_tokens=150)
    undisturbed.read()
    undisturbed.close()
    stream = Stream(server, max_tokens=150)
    stream.read(5)
    (before,) = server.worker_pids()
    psutil.Process(before).kill()
    stream.read()
    stream.close()
    assert stream.done
    assert stream.text == undisturbed.text
    until(lambda: server.worker_pids() not in ([], [before]), "the worker is replaced")
    assert server.client.get(f"{server.http_url}/health/ready").status_code == 200


def test_a_killed_server_leaves_no_worker(server: RunningServer) -> None:
    processes = family(server)
    assert len(processes) == 4  # the server, its worker, the starter of text processes and the model's own
    server.process.kill()
    server.process.wait(20)
    check_all_gone(processes)
    with RunningServer(server.data_dir, {}, NULL) as successor:
        assert complete(successor).status_code == 200
