"""A real server whose CPU is two devices: placement, replicas that follow the load, and a worker's death."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.running_server import RunningServer
from support.server_probes import check_idle
from support.small_checkpoint import NULL_ENVIRONMENT, write_checkpoint
from support.until import until

from mooring.units import MIB

pytestmark = pytest.mark.integration

EAGER = {
    **NULL_ENVIRONMENT,
    "MOORING_PLANNER__REQUESTS_PER_REPLICA": "2",
    "MOORING_PLANNER__SCALE_UP_AFTER_S": "0.2",
    "MOORING_PLANNER__SCALE_DOWN_AFTER_S": "1.0",
    "MOORING_OTHERS__WATCH": "false",
}
SLOW = {**EAGER, "MOORING_NULL__STEP_TIME_S": "0.02"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("devices") / "a")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[RunningServer]:
    data_dir = tmp_path_factory.mktemp("two") / "data"
    config = data_dir.with_name("mooring.toml")
    config.write_text(
        '[[devices]]\nname = "cpu:0"\nmemory_budget = "12MiB"\n\n'
        '[[devices]]\nname = "cpu:1"\nmemory_budget = "10MiB"\n'
    )
    models = {"a": checkpoint, "b": checkpoint}
    with RunningServer(data_dir, models, ["--engine", "null"], SLOW, config) as running:
        assert running.admin("PATCH", "/deployments/a", {"max_replicas": 2}).status_code == 200
        yield running


def replicas(server: RunningServer, name: str) -> dict[str, str]:
    """Residency by worker, of those that one knows."""
    (found,) = [each for each in server.status()["deployments"] if each["name"] == name]
    return {each["worker"]: each["residency"] for each in found["replicas"] if each["worker"] is not None}


class Load:
    """Requests for one model, kept up from several threads until told to stop; none may fail."""

    def __init__(self, server: RunningServer, name: str, num_clients: int, max_tokens: int = 20) -> None:
        self.answers: list[int] = []
        self._stopping = threading.Event()
        self._server = server
        self._body = {"model": name, "prompt": "hello", "max_tokens": max_tokens, "ignore_eos": True}
        self._threads = [threading.Thread(target=self._run) for _ in range(num_clients)]

    def _run(self) -> None:
        while not self._stopping.is_set():
            url = f"{self._server.http_url}/v1/completions"
            self.answers.append(self._server.client.post(url, json=self._body).status_code)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(30)


def test_each_device_has_its_budget_and_its_worker(server: RunningServer) -> None:
    status = server.status()
    assert {each["name"]: each["budget_bytes"] for each in status["devices"]} == {
        "cpu:0": 12 * MIB,
        "cpu:1": 10 * MIB,
    }
    assert [(w["worker_id"], w["device"], w["state"]) for w in status["workers"]] == [
        ("null-0", "cpu:0", "ready"),
        ("null-1", "cpu:1", "ready"),
    ]


def test_load_brings_a_second_replica_and_its_end_lets_it_go(server: RunningServer) -> None:
    with Load(server, "a", num_clients=6) as load:
        until(lambda: list(replicas(server, "a").values()) == ["resident"] * 2, "a second replica")
        num_before = len(load.answers)
        until(lambda: len(load.answers) > num_before + 12, "answers from both")
        events = server.admin("GET", "/events?kind=load&deployment=a").json()
        assert "more than 1 replicas serve well" in events[0]["reason"]
    assert set(load.answers) == {200}
    until(lambda: list(replicas(server, "a").values()).count("resident") == 1, "one of them sleeps again")
    slept = server.admin("GET", "/events?kind=sleep&deployment=a").json()
    assert slept[0]["reason"] == "the load asks for 1 replicas"
    check_idle(server)


def test_the_death_of_one_worker_leaves_the_other_serving(server: RunningServer) -> None:
    with Load(server, "a", num_clients=6) as load:
        until(lambda: list(replicas(server, "a").values()) == ["resident"] * 2, "a second replica")
        before = {each["worker_id"]: each["pid"] for each in server.status()["workers"]}
        psutil.Process(before["null-1"]).kill()
        until(lambda: "null-1" not in replicas(server, "a"), "the loss is noticed")
        assert replicas(server, "a")["null-0"] == "resident"
        num_then = len(load.answers)
        until(lambda: len(load.answers) > num_then + 6, "the other one serves")
        until(lambda: list(replicas(server, "a").values()) == ["resident"] * 2, "the second one is back")
        after = {each["worker_id"]: each["pid"] for each in server.status()["workers"]}
        assert (after["null-0"], after["null-1"]) == (before["null-0"], after["null-1"])
        assert after["null-1"] not in (None, before["null-1"])
    assert set(load.answers) == {200}, "nobody noticed"
    lost = server.admin("GET", "/events?kind=worker").json()
    assert [(each["worker"], each["reason"].split()[0]) for each in lost[:2]] == [
        ("null-1", "takes"),
        ("null-1", "lost:"),
    ]
    check_idle(server)


def test_a_model_goes_where_there_is_room(server: RunningServer) -> None:
    for name in "ab":
        body = {"model": name, "prompt": "hello", "max_tokens": 1}
        assert server.client.post(f"{server.http_url}/v1/completions", json=body).status_code == 200
    on = [
        {worker for worker, where in replicas(server, name).items() if where == "resident"} for name in "ab"
    ]
    assert on[0]
    assert on[1]
    for device in server.status()["devices"]:
        assert sum(device["owners"].values()) <= device["budget_bytes"]


@pytest.mark.slow
def test_the_torch_engine_on_two_devices(checkpoint: Path, tmp_path: Path) -> None:
    flags = ["--device", "cpu:0=96MiB", "--device", "cpu:1=64MiB", "--dtype", "float32"]
    environment = {**EAGER, "MOORING_TORCH__READY_BYTES": "2MiB"}
    with RunningServer(tmp_path / "data", {"a": checkpoint}, flags, environment) as server:
        body = {"min_replicas": 2, "max_replicas": 2}
        assert server.admin("PATCH", "/deployments/a", body).status_code == 200
        until(lambda: list(replicas(server, "a").values()) == ["resident"] * 2, "both", timeout_s=30)
        ask = {"model": "a", "prompt": "hello", "max_tokens": 12, "temperature": 0, "ignore_eos": True}
        answers: list[str] = []

        def one() -> None:
            answer = server.client.post(f"{server.http_url}/v1/completions", json=ask)
            answers.append(answer.json()["choices"][0]["text"])

        threads = [threading.Thread(target=one) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(answers) == 6
        assert len(set(answers)) == 1, "both replicas give the same tokens"
        check_idle(server)
