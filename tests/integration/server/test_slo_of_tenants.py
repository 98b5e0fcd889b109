"""SLO classes on a real server: the admin API, by which targets requests are judged, and who is served first."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.running_server import RunningServer
from support.small_checkpoint import NULL_ENVIRONMENT, write_checkpoint
from support.tiny_models import make_tiny_model
from support.until import until

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    root = tmp_path_factory.mktemp("slo")
    models = {"first": write_checkpoint(root / "first")}
    flags = ["--engine", "null", "--memory-budget", "64MiB"]
    with RunningServer(root / "data", models, flags, NULL_ENVIRONMENT) as running:
        yield running


def call(server: RunningServer, method: str, path: str, body: Any = None, status: int = 200) -> Any:
    response = server.admin(method, path, body)
    assert response.status_code == status, response.text
    return response.json() if response.content else None


def new_tenant(server: RunningServer, name: str, **terms: Any) -> str:
    """A tenant with a class of its own name; returns its key."""
    call(server, "POST", "/slo-classes", {"name": name, **terms}, 201)
    call(server, "POST", "/tenants", {"name": name}, 201)
    call(server, "PATCH", f"/tenants/{name}", {"slo_class": name})
    key: str = call(server, "POST", f"/tenants/{name}/keys", {}, 201)["key"]
    return key


def complete(server: RunningServer, key: str, **fields: Any) -> httpx.Response:
    body = {"model": "first", "prompt": "hello", "max_tokens": 3, **fields}
    headers = {"authorization": f"Bearer {key}"}
    return server.client.post(f"{server.http_url}/v1/completions", json=body, headers=headers)


def attainment(server: RunningServer, tenant: str) -> dict[str, Any] | None:
    found = [each for each in call(server, "GET", "/slo?misses=20") if each["tenant"] == tenant]
    assert len(found) <= 1
    return found[0] if found else None


def test_a_class_is_made_changed_given_and_removed(server: RunningServer) -> None:
    made = call(
        server, "POST", "/slo-classes", {"name": "org/chat", "ttft_target_s": 1, "tpot_target_s": 0.1}, 201
    )
    assert made == {
        "name": "org/chat",
        "ttft_target_s": 1.0,
        "tpot_target_s": 0.1,
        "goal": 0.95,
        "priority": 0,
        "on_miss": "batch",
        "tenants": [],
    }
    changes = {"goal": 0.5, "priority": 2, "on_miss": "refuse"}
    assert call(server, "PATCH", "/slo-classes/org/chat", changes) == {**made, **changes}
    assert call(server, "PATCH", "/slo-classes/org/chat", {"priority": None})["priority"] == 0
    assert call(server, "POST", "/tenants", {"name": "chatty"}, 201)["slo_class"] is None
    assert call(server, "PATCH", "/tenants/chatty", {"slo_class": "org/chat"})["slo_class"] == "org/chat"
    assert [each["tenants"] for each in call(server, "GET", "/slo-classes")] == [["chatty"]]
    refused = call(server, "DELETE", "/slo-classes/org/chat", status=409)["error"]
    assert refused["code"] == "conflict"
    assert "'chatty'" in refused["message"]
    assert call(server, "PATCH", "/tenants/chatty", {"slo_class": None})["slo_class"] is None
    call(server, "DELETE", "/slo-classes/org/chat", status=204)
    assert call(server, "GET", "/slo-classes") == []
    call(server, "DELETE", "/tenants/chatty", status=204)
    assert "admin: DELETE /slo-classes/{name" in server.log()


def test_a_tenants_weight_is_set_changed_and_put_back(server: RunningServer) -> None:
    call(server, "POST", "/slo-classes", {"name": "w", "ttft_target_s": 1, "tpot_target_s": 1}, 201)
    assert call(server, "POST", "/tenants", {"name": "heavy", "weight": 2.5}, 201)["weight"] == 2.5
    changed = call(server, "PATCH", "/tenants/heavy", {"weight": 0.5, "slo_class": "w"})
    assert (changed["weight"], changed["slo_class"]) == (0.5, "w")
    assert call(server, "PATCH", "/tenants/heavy", {"slo_class": None})["weight"] == 0.5
    call(server, "PATCH", "/tenants/heavy", {"weight": 3, "slo_class": "nothing"}, 404)
    (listed,) = [each for each in call(server, "GET", "/tenants") if each["name"] == "heavy"]
    assert listed["weight"] == 0.5, "all of a change or nothing"
    assert call(server, "PATCH", "/tenants/heavy", {"weight": None})["weight"] == 1.0
    call(server, "DELETE", "/tenants/heavy", status=204)
    call(server, "DELETE", "/slo-classes/w", status=204)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code", "param"),
    [
        ("POST", "/slo-classes", {"name": "x"}, 400, "missing_required_parameter", "ttft_target_s"),
        ("POST", "/slo-classes", {"goal": 1.5}, 400, "invalid_value", "goal"),
        ("POST", "/slo-classes", {"goal": 0}, 400, "invalid_value", "goal"),
        ("POST", "/slo-classes", {"ttft_target_s": 0}, 400, "invalid_value", "ttft_target_s"),
        ("POST", "/slo-classes", {"tpot_target_s": "1"}, 400, "invalid_type", "tpot_target_s"),
        ("POST", "/slo-classes", {"priority": 2**31}, 400, "invalid_value", "priority"),
        ("POST", "/slo-classes", {"on_miss": "wait"}, 400, "invalid_value", "on_miss"),
        ("POST", "/slo-classes", {"weight": 1}, 400, "unsupported_parameter", "weight"),
        ("POST", "/slo-classes", {"name": "best-effort"}, 400, "invalid_value", "name"),
        ("POST", "/slo-classes", {"name": "a b"}, 400, "invalid_value", "name"),
        ("PATCH", "/slo-classes/nothing", {"goal": 0.5}, 404, "not_found", None),
        ("DELETE", "/slo-classes/nothing", None, 404, "not_found", None),
        ("PATCH", "/tenants/nobody", {"slo_class": None}, 404, "not_found", None),
        ("PATCH", "/tenants/nobody", {}, 400, "invalid_value", None),
        ("PATCH", "/tenants/nobody", {"share": 1}, 400, "unsupported_parameter", "share"),
        ("PATCH", "/tenants/nobody", {"weight": 0}, 400, "invalid_value", "weight"),
        ("PATCH", "/tenants/nobody", {"weight": 2}, 404, "not_found", None),
        ("POST", "/slo-classes", {"name": "auto"}, 400, "invalid_value", "name"),
        (
            "PATCH",
            "/tenants/nobody",
            {"allowed_slo_classes": "x"},
            400,
            "invalid_type",
            "allowed_slo_classes",
        ),
        ("POST", "/tenants", {"name": "heavy", "weight": 1001}, 400, "invalid_value", "weight"),
    ],
)
def test_what_cannot_be_done_says_why(
    server: RunningServer, method: str, path: str, body: Any, status: int, code: str, param: str | None
) -> None:
    if path == "/slo-classes" and code != "missing_required_parameter":
        body = {"name": "x", "ttft_target_s": 1, "tpot_target_s": 1, **body}
    error = call(server, method, path, body, status)["error"]
    assert (error["code"], error["param"]) == (code, param)


def test_requests_are_judged_by_the_class_of_their_tenant(server: RunningServer) -> None:
    lax = new_tenant(server, "lax", ttft_target_s=600, tpot_target_s=600, goal=0.5)
    strict = new_tenant(server, "strict", ttft_target_s=1e-9, tpot_target_s=600, goal=0.75)
    assert attainment(server, "lax") is None
    for _ in range(3):
        assert complete(server, lax).status_code == 200
    missed = complete(server, strict)
    assert missed.status_code == 200
    assert complete(server, lax, temperature=9).status_code == 400, "its own fault"

    until(lambda: attainment(server, "strict") is not None)
    found = attainment(server, "lax")
    assert found is not None
    assert found["windows"]["1h"] == {"requests": 3, "attained": 1.0, "budget_left": 1.0}
    assert (found["slo_class"], found["model"], found["goal"], found["misses"]) == ("lax", "first", 0.5, [])
    found = attainment(server, "strict")
    assert found is not None
    assert found["windows"]["1m"] == {"requests": 1, "attained": 0.0, "budget_left": pytest.approx(-3.0)}
    (miss,) = found["misses"]
    assert miss["request_id"] == missed.headers["x-request-id"]
    assert 0 < miss["ttft_s"] < 60
    assert min(miss[each] for each in ("queue_s", "wake_s", "prefill_s", "decode_s")) >= 0
    before_s = miss["queue_s"] + miss["wake_s"] + miss["prefill_s"]
    assert before_s == pytest.approx(miss["ttft_s"]), "all of its time is told"
    assert all(each["misses"] == [] for each in call(server, "GET", "/slo")), "nobody asked for them"
    for wrong in ("-1", "21", "all"):
        refused = call(server, "GET", f"/slo?misses={wrong}", status=400)["error"]
        assert refused["param"] == "misses"
    metrics = server.client.get(f"{server.http_url}/metrics").text
    series = 'tenant="strict"'
    labels = 'class="strict",model="first"'
    assert f'mooring_slo_attainment_ratio{{{labels},{series},window="1m"}} 0.0' in metrics
    assert f'mooring_slo_requests_total{{{labels},outcome="missed",{series}}} 1.0' in metrics
    assert 'mooring_ttft_predictions_total{model="first",outcome=' in metrics
    assert 'mooring_fairness_jain_index{device="cpu"}' in metrics
    assert 'mooring_queue_requests{device="cpu",state="in_time"} 0.0' in metrics


def test_refused_requests_missed_and_tenants_without_a_class_are_best_effort(server: RunningServer) -> None:
    call(server, "POST", "/deployments", {"name": "off", "model": "first"}, 201)
    call(server, "PATCH", "/deployments/off", {"enabled": False})
    key = new_tenant(server, "refused", ttft_target_s=600, tpot_target_s=600)
    assert complete(server, key, model="off").status_code == 503
    assert complete(server, key, model="nothing").status_code == 404
    found = attainment(server, "refused")
    assert found is not None
    assert (found["model"], found["windows"]["1m"]["requests"]) == ("off", 1)
    (miss,) = found["misses"]
    assert (miss["ttft_s"], miss["prefill_s"], miss["decode_s"]) == (None, None, None)
    call(server, "DELETE", "/deployments/off", status=204)

    body = {"model": "first", "prompt": "hello", "max_tokens": 3}
    assert server.client.post(f"{server.http_url}/v1/completions", json=body).status_code == 200
    until(lambda: attainment(server, "anonymous") is not None)
    found = attainment(server, "anonymous")
    assert found is not None
    assert (found["slo_class"], found["goal"]) == ("best-effort", None)
    assert found["windows"]["1m"]["budget_left"] is None


def test_a_class_of_higher_priority_is_served_before_who_waited_longer_for_the_same_model(
    tmp_path: Path,
) -> None:
    models = {"first": make_tiny_model(tmp_path / "first")}
    environment = {"MOORING_TORCH__MAX_RUNNING_SEQUENCES": "1"}
    flags = ["--dtype", "float32", "--memory-budget", "64MiB"]
    answered: list[str] = []
    with (
        RunningServer(tmp_path / "data", models, flags, environment) as server,
        ThreadPoolExecutor(2) as pool,
    ):
        keys = {
            "patient": new_tenant(server, "patient", ttft_target_s=60, tpot_target_s=60),
            "urgent": new_tenant(server, "urgent", ttft_target_s=60, tpot_target_s=60, priority=5),
        }

        def ask(name: str) -> None:
            answer = complete(server, keys[name], max_tokens=200, ignore_eos=True)
            assert answer.status_code == 200, answer.text
            answered.append(name)

        def num_waiting() -> int:
            return int(call(server, "GET", "/deployments/first/why")["num_waiting"])

        (pid,) = server.worker_pids()
        os.kill(pid, signal.SIGSTOP)  # the model does not come until both wait for it
        try:
            asked = [pool.submit(ask, "patient")]
            until(lambda: num_waiting() == 1)
            asked.append(pool.submit(ask, "urgent"))
            until(lambda: num_waiting() == 2)
            (queue,) = call(server, "GET", "/queues")
            assert [(each["tenant"], each["priority"]) for each in queue["first"]] == [
                ("urgent", 5),
                ("patient", 0),
            ]
            assert {each["reason"] for each in queue["first"]} <= {"asleep", "loading"}
            assert (queue["device"], queue["policy"], queue["num_in_time"]) == ("cpu", "slo", 2)
            assert {each["tenant"] for each in queue["shares"]} == {"urgent", "patient"}
            assert queue["oldest_s"] == max(each["waited_s"] for each in queue["first"])
            assert call(server, "GET", "/status")["queues"][0].keys() == queue.keys()
        finally:
            os.kill(pid, signal.SIGCONT)
        for each in asked:
            each.result(timeout=60)
    assert answered == ["urgent", "patient"]
