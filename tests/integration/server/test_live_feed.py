"""The live feed of a real server under load, while models move: numbers without a gap, sums that are right."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.running_server import RunningServer

from benchmarks.random_models import TINY_SHAPE, make_random_models
from mooring.merge_patch import patched

pytestmark = pytest.mark.integration

MODELS = ("a", "b", "c")
LOAD_S = 12.0
PARTS = ("in_use_bytes", "cached_bytes", "parked_bytes", "unused_bytes")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Three models in the room of two, so that they move."""
    root = tmp_path_factory.mktemp("live")
    folders = make_random_models(root / "models", TINY_SHAPE, MODELS, "fp32")
    flags = ["--dtype", "float32", "--memory-budget", "20MiB"]
    environment = {"MOORING_OTHERS__WATCH": "false", "MOORING_PLANNER__STARVE_AFTER_S": "0.2"}
    with RunningServer(root / "data", folders, flags, environment) as running:
        for name in MODELS:
            complete(running, name, 4)
        yield running


def complete(server: RunningServer, model: str, num_tokens: int = 64, number: int = 0) -> None:
    prompt = [3 + (7 * number + 11 * place) % 1000 for place in range(64)]
    body = {"model": model, "prompt": prompt, "max_tokens": num_tokens, "ignore_eos": True}
    answer = server.client.post(f"{server.http_url}/v1/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text


class LiveReader:
    """Follows the feed on a thread: keeps every state by its number, and every event."""

    def __init__(self, server: RunningServer) -> None:
        self.states: dict[int, dict[str, Any]] = {}
        self.seen_at_s: dict[int, float] = {}
        self.snapshots: list[int] = []
        self.events: list[dict[str, Any]] = []
        self.error: Exception | None = None
        self._url = f"{server.http_url}/admin/v1/live"
        self._headers = {"authorization": f"Bearer {server.admin_key}"}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow)

    def __enter__(self) -> LiveReader:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._done.set()
        self._thread.join()
        assert self.error is None, self.error

    @property
    def seq(self) -> int:
        return max(self.states, default=0)

    def _follow(self) -> None:
        try:
            with (
                httpx.Client(timeout=20, trust_env=False) as client,
                client.stream("GET", self._url, headers=self._headers) as answer,
            ):
                fields: dict[str, str] = {}
                for line in answer.iter_lines():
                    if line and not line.startswith(":"):
                        name, _, value = line.partition(": ")
                        fields[name] = value
                    elif fields:
                        self._take(fields["event"], json.loads(fields["data"]))
                        fields = {}
                    if self._done.is_set():
                        return
        except Exception as error:  # a thread's edge: told at the end
            self.error = error

    def _take(self, kind: str, data: dict[str, Any]) -> None:
        if kind == "event":
            self.events.append(data)
            return
        seq = data["seq"]
        if kind == "snapshot":
            self.snapshots.append(seq)
            self.states[seq] = data["state"]
        else:
            self.states[seq] = patched(self.states[seq - 1], data["patch"])  # fails where there is a gap
        self.seen_at_s[seq] = time.time()


def check_sums(devices: dict[str, Any]) -> None:
    for device in devices.values():
        found = device["segments"].values()
        assert sum(each["promised_bytes"] for each in found) == device["budget_bytes"]
        for segment in found:
            if segment["kind"] == "kv":
                assert sum(segment[part] for part in PARTS) == segment["used_bytes"]
                assert min(segment[part] for part in PARTS) >= 0


def check_books(devices: dict[str, Any], workers: list[dict[str, Any]]) -> None:
    """What is used is what the workers say themselves."""
    for worker in workers:
        segments = devices[worker["device"]]["segments"]
        assert segments[f"kv:{worker['worker_id']}"]["used_bytes"] == worker["stats"]["kv_bytes"]
        said = {each["replica_id"]: each["weights_bytes"] for each in worker["stats"]["replicas"]}
        shown = {
            each["replica"]: each["used_bytes"]
            for each in segments.values()
            if each["kind"] == "weights" and each.get("worker") == worker["worker_id"]
        }
        assert {name: num_bytes for name, num_bytes in said.items() if num_bytes} == {
            name: num_bytes for name, num_bytes in shown.items() if num_bytes
        }


def test_at_every_sample_of_a_run_under_load_the_sums_and_the_books_agree(server: RunningServer) -> None:
    ends_s = time.monotonic() + LOAD_S
    num_compared = num_by_number = 0

    def load(number: int) -> None:
        while time.monotonic() < ends_s:
            complete(server, MODELS[number % len(MODELS)], 48, number)
            number += 1

    with LiveReader(server) as reader, ThreadPoolExecutor(9) as clients:
        running = [clients.submit(load, number) for number in range(9)]
        while time.monotonic() < ends_s:
            before = server.admin("GET", "/workers").json()
            published = server.admin("GET", "/live/snapshot").json()
            after = server.admin("GET", "/workers").json()
            check_sums(published["state"]["devices"])
            if before == after:  # the workers told nothing new meanwhile
                check_books(published["state"]["devices"], after)
                num_compared += 1
            answer = server.admin("GET", f"/devices?seq={published['seq']}")
            if answer.status_code == 200:
                assert answer.headers["x-mooring-seq"] == str(published["seq"])
                for device in answer.json():
                    shown = published["state"]["devices"][device["name"]]
                    assert device["segments"] == shown["segments"]
                    num_by_number += 1
        for each in running:
            each.result()
    assert num_compared > 20
    assert num_by_number > 20
    for state in reader.states.values():
        check_sums(state["devices"])
        assert state["server"]["ledger_mismatches"] == 0
    moves = [name for state in reader.states.values() for name, each in state["deployments"].items()
             if each["residency"] == "warm"]  # fmt: skip
    assert set(moves) == set(MODELS), "every model has been away"
    busy = [state["devices"]["cpu"].get("utilization", 0.0) for state in reader.states.values()]
    assert 0.2 < max(busy) <= 1.0
    assert max(state["figures"]["tokens_per_s"] for state in reader.states.values()) > 10
    assert {"evict", "wake"} <= {event["kind"] for event in reader.events}


def test_a_reader_has_the_state_that_a_snapshot_gives(server: RunningServer) -> None:
    with LiveReader(server) as reader:
        while not reader.states:
            time.sleep(0.01)
        for number in range(5):
            complete(server, "a", 8, number)
            published = server.admin("GET", "/live/snapshot").json()
            while reader.seq < published["seq"]:
                time.sleep(0.01)
            assert reader.states[published["seq"]] == published["state"]
    assert len(reader.snapshots) == 1


def test_a_change_of_residency_is_seen_within_a_second(server: RunningServer) -> None:
    waits_s = []
    with LiveReader(server) as reader:
        while not reader.states:
            time.sleep(0.01)
        for _ in range(5):
            server.admin("POST", "/deployments/a/wake")
            for act, residency in (("sleep", "warm"), ("wake", "resident")):
                began_s = time.time()
                assert server.admin("POST", f"/deployments/a/{act}").status_code == 204
                while reader.states[reader.seq]["deployments"]["a"]["residency"] != residency:
                    assert time.time() < began_s + 20
                    time.sleep(0.002)
                changed_s = reader.states[reader.seq]["deployments"]["a"]["since"]
                waits_s.append(time.time() - changed_s)
    print("seen after", [round(each, 3) for each in waits_s])
    assert max(waits_s) < 1.0, waits_s


def test_who_waits_is_told_for_what(server: RunningServer) -> None:
    """Of all that the load made wait, each state says for what."""
    with LiveReader(server) as reader, ThreadPoolExecutor(12) as clients:
        list(clients.map(lambda number: complete(server, MODELS[number % 3], 32, number), range(24)))
    waiting = [
        deployment
        for state in reader.states.values()
        for deployment in state["deployments"].values()
        if deployment["num_waiting"] or deployment["residency"] in ("loading", "waking")
    ]
    assert waiting
    assert all(deployment.get("waits_for", "").endswith(".") for deployment in waiting)


def test_numbers_that_are_not_kept_are_not_found(server: RunningServer) -> None:
    assert server.admin("GET", "/devices?seq=1000000").status_code == 404
    answer = server.admin("GET", "/devices")
    assert answer.json()[0]["owners"].keys() <= answer.json()[0]["segments"].keys()
    assert "free" not in answer.json()[0]["owners"]


def test_the_last_hour_is_there_without_a_reader(server: RunningServer) -> None:
    history = server.admin("GET", "/history?minutes=60").json()
    assert history["interval_s"] == 5
    assert len(history["at"]) > 1
    assert {len(column) for column in history["series"].values()} == {len(history["at"])}
    assert {"tokens_per_s", "running", "waiting", "utilization:cpu", "kv_in_use:cpu"} <= history[
        "series"
    ].keys()
    assert max(value for value in history["series"]["tokens_per_s"] if value is not None) > 0
    assert server.admin("GET", "/history?minutes=0").status_code == 400


def test_only_the_admin_reads(server: RunningServer) -> None:
    for path in ("/live", "/live/snapshot", "/history", "/devices"):
        assert server.client.get(f"{server.http_url}/admin/v1{path}").status_code == 401


def test_the_end_of_the_server_ends_the_stream(tmp_path: Path) -> None:
    """A stream that is cut off in its middle would be an error to its reader."""
    folders = make_random_models(tmp_path / "models", TINY_SHAPE, ("a",), "fp32")
    flags = ["--dtype", "float32", "--memory-budget", "20MiB"]
    with (
        RunningServer(tmp_path / "data", folders, flags) as server,
        LiveReader(server) as reader,
    ):
        while not reader.states:
            time.sleep(0.01)
        server.stop()
