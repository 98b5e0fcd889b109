"""Events of a real server: listed in pages, streamed as they come, kept over a restart; and why."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.running_server import RunningServer
from support.small_checkpoint import NULL_ENVIRONMENT, write_checkpoint

pytestmark = pytest.mark.integration

NULL = ["--engine", "null", "--memory-budget", "8MiB"]
ENVIRONMENT = {**NULL_ENVIRONMENT, "MOORING_OTHERS__WATCH": "false"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Three models in the room of two."""
    root = tmp_path_factory.mktemp("events")
    checkpoint = write_checkpoint(root / "m")
    with RunningServer(root / "data", dict.fromkeys("abc", checkpoint), NULL, ENVIRONMENT) as running:
        for name in "abc":
            ask(running, name)
        yield running


def ask(server: RunningServer, name: str) -> None:
    body = {"model": name, "prompt": "hello", "max_tokens": 1}
    assert server.client.post(f"{server.http_url}/v1/completions", json=body).status_code == 200


def events(server: RunningServer, query: str = "") -> list[dict[str, Any]]:
    answer = server.admin("GET", f"/events{query}")
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()
    return found


def stream(server: RunningServer, query: str = "", **headers: str) -> Iterator[dict[str, Any]]:
    """Events from the stream, each with the id and the kind that its frame has."""
    headers["authorization"] = f"Bearer {server.admin_key}"
    url = f"{server.http_url}/admin/v1/events/stream{query}"
    with httpx.Client(timeout=20) as client, client.stream("GET", url, headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        frame: dict[str, str] = {}
        for line in answer.iter_lines():
            if line.startswith(":"):
                yield {"comment": line}
            elif line:
                key, _, value = line.partition(": ")
                frame[key] = value
            elif frame:
                event = json.loads(frame["data"])
                assert (str(event["id"]), event["kind"]) == (frame["id"], frame["event"])
                yield event
                frame = {}


def test_pages_cover_everything_once_newest_first(server: RunningServer) -> None:
    everything = events(server, "?limit=1000")
    ids = [each["id"] for each in everything]
    assert ids == sorted(ids, reverse=True)
    paged: list[int] = []
    while page := events(server, f"?limit=4&before={paged[-1] if paged else 10**9}"):
        paged += [each["id"] for each in page]
    assert paged == ids
    assert [each["id"] for each in events(server, f"?after={ids[3]}")] == ids[:3]


def test_found_by_deployment_and_kind(server: RunningServer) -> None:
    assert {each["deployment"] for each in events(server, "?deployment=a")} == {"a"}
    kinds = {each["kind"] for each in events(server, "?kind=load&kind=ready")}
    assert kinds == {"load", "ready"}
    (evicted,) = events(server, "?kind=evict&limit=1")
    assert evicted["deployment"] in ("a", "b")
    assert evicted["figures"]["room_for"] == "c"
    assert evicted["figures"]["needed_bytes"] == evicted["figures"]["freed_bytes"] == 2 << 20
    assert events(server, "?deployment=nobody") == []


@pytest.mark.parametrize(
    "query", ["?limit=0", "?limit=1001", "?limit=x", "?before=-1", f"?after={2**63}", "?kind=nonsense"]
)
def test_what_cannot_be_asked_is_refused_by_name(server: RunningServer, query: str) -> None:
    answer = server.admin("GET", f"/events{query}")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].partition("[")[0] == query[1:].partition("=")[0]


def test_the_stream_goes_on_from_the_last_one_seen(server: RunningServer) -> None:
    known = events(server)
    last_seen = known[2]["id"]
    headers = {"last-event-id": str(last_seen)}
    coming = stream(server, **headers)
    assert "comment" in next(coming)
    assert [next(coming)["id"] for _ in range(2)] == [known[1]["id"], known[0]["id"]]
    server.admin("POST", "/deployments/c/wake")
    server.admin("POST", "/deployments/c/sleep")
    assert next(each for each in coming if each.get("kind") == "sleep")["reason"] == "asked to sleep"
    refused = server.client.get(
        f"{server.http_url}/admin/v1/events/stream",
        headers={"authorization": f"Bearer {server.admin_key}", "last-event-id": "yesterday"},
    )
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "Last-Event-ID")


def test_the_stream_begins_now_and_can_be_narrowed(server: RunningServer) -> None:
    coming = stream(server, "?deployment=b&kind=load&kind=wake")
    assert "comment" in next(coming)
    for name in "ab":
        server.admin("POST", f"/deployments/{name}/sleep")
        ask(server, name)
    found = next(each for each in coming if "comment" not in each)
    assert (found["deployment"], found["id"]) == (
        "b",
        events(server, "?deployment=b&kind=load&kind=wake")[0]["id"],
    )


def test_why_a_model_is_where_it_is(server: RunningServer) -> None:
    for name in "ab":
        ask(server, name)
    why = server.admin("GET", "/deployments/c/why").json()
    assert (why["residency"], why["way_in"]["verdict"]) in (("warm", "evicts"), ("warm", "waits"))
    assert [each["deployment"] for each in why["way_in"]["leaving"]] in (["a"], ["b"])
    assert why["way_in"]["leaving"][0]["freed_bytes"] == 2 << 20
    assert why["replicas"][0]["for_s"] > 0
    assert why["decisions"][0]["kind"] in ("evict", "sleep")
    there = server.admin("GET", "/deployments/a/why").json()
    assert (there["residency"], there["way_in"]["verdict"]) == ("resident", "there")
    assert server.admin("GET", "/deployments/nobody/why").status_code == 404
    server.admin("PATCH", "/deployments/c", {"enabled": False})
    off = server.admin("GET", "/deployments/c/why").json()
    assert (off["reason"], off["way_in"]) == ("it is disabled", None)
    server.admin("PATCH", "/deployments/c", {"enabled": True})


def test_refusals_are_counted_in_one_event(server: RunningServer) -> None:
    assert server.admin("PATCH", "/deployments/c", {"kv_guarantee_bytes": 64 << 20}).status_code == 200
    body = {"model": "c", "prompt": "hello", "max_tokens": 1}
    for _ in range(5):
        assert server.client.post(f"{server.http_url}/v1/completions", json=body).status_code == 507
    refused = events(server, "?kind=refuse&deployment=c")
    assert sum(each["figures"]["num_refused"] for each in refused) == 5
    assert "can never fit" in refused[0]["reason"]
    why = server.admin("GET", "/deployments/c/why").json()
    assert why["way_in"]["verdict"] == "never"
    server.admin("PATCH", "/deployments/c", {"kv_guarantee_bytes": None})


@pytest.mark.slow
def test_events_outlive_the_server_within_their_bound(tmp_path: Path) -> None:
    environment = {**ENVIRONMENT, "MOORING_MAX_EVENTS": "20"}
    models = {"a": write_checkpoint(tmp_path / "a")}
    with RunningServer(tmp_path / "data", models, NULL, environment) as server:
        for _ in range(6):
            ask(server, "a")
            server.admin("POST", "/deployments/a/sleep")
        newest = events(server)[0]["id"]
        coming = stream(server)
        assert "comment" in next(coming)
    assert all("comment" in each or each["id"] > newest for each in coming), "the server's end ends it"
    with RunningServer(tmp_path / "data", {}, NULL, environment) as server:
        found = events(server, "?limit=1000")
        assert len(found) == 20
        assert found[-1]["id"] < newest < found[0]["id"]
