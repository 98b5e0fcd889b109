"""The admin API of a real server: every route, its refusals and the shape of what it tells."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from support.running_server import RunningServer
from support.small_checkpoint import MAX_MODEL_LEN, NULL_ENVIRONMENT, write_checkpoint

from memory_manager.stats import ReplicaStats, WorkerStats
from memory_manager.watch.devices import DeviceMemory

pytestmark = pytest.mark.integration

MIB = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    root = tmp_path_factory.mktemp("admin")
    with RunningServer(
        root / "data",
        {"first": write_checkpoint(root / "first")},
        ["--engine", "null", "--memory-budget", "64MiB"],
        {**NULL_ENVIRONMENT, "HF_HUB_OFFLINE": "1"},
    ) as running:
        yield running


def call(server: RunningServer, method: str, path: str, body: Any = None, status: int = 200) -> Any:
    response = server.admin(method, path, body)
    assert response.status_code == status, response.text
    assert response.headers["x-request-id"]
    return response.json() if response.content else None


def refusal(
    server: RunningServer, method: str, path: str, body: Any = None, *, status: int
) -> dict[str, Any]:
    """The error object of a call that is refused."""
    answer = call(server, method, path, body, status)
    assert answer.keys() == {"error"}
    error: dict[str, Any] = answer["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


def ended(server: RunningServer, registration: dict[str, Any]) -> dict[str, Any]:
    deadline = time.monotonic() + 20
    while registration["state"] == "running":
        assert time.monotonic() < deadline, registration
        time.sleep(0.02)
        registration = call(server, "GET", f"/registrations/{registration['id']}")
    return registration


def register(server: RunningServer, name: str, source: Path | str, **fields: Any) -> dict[str, Any]:
    started = call(server, "POST", "/models", {"name": name, "source": str(source), **fields}, 202)
    return ended(server, started)


def complete(server: RunningServer, model: str) -> httpx.Response:
    body = {"model": model, "prompt": "hello", "max_tokens": 3}
    return server.client.post(f"{server.http_url}/v1/completions", json=body)


def residency(server: RunningServer, name: str) -> str:
    found: str = call(server, "GET", f"/deployments/{name}")["residency"]
    return found


# Keys and descriptions.


def test_the_openapi_page_describes_every_admin_route_and_each_needs_the_key(server: RunningServer) -> None:
    page = server.client.get(f"{server.http_url}/openapi.json").json()
    routes = {
        (method.upper(), path)
        for path, methods in page["paths"].items()
        for method in methods
        if path.startswith("/admin/v1/")
    }
    assert {path for _, path in routes} == {
        "/admin/v1/models",
        "/admin/v1/models/{name}",
        "/admin/v1/models/{name}/versions",
        "/admin/v1/registrations",
        "/admin/v1/registrations/{registration_id}",
        "/admin/v1/registrations/{registration_id}/cancel",
        "/admin/v1/registrations/{registration_id}/resume",
        "/admin/v1/deployments",
        "/admin/v1/deployments/{name}",
        "/admin/v1/deployments/{name}/sleep",
        "/admin/v1/deployments/{name}/wake",
        "/admin/v1/deployments/{name}/why",
        "/admin/v1/events",
        "/admin/v1/events/stream",
        "/admin/v1/fit",
        "/admin/v1/history",
        "/admin/v1/live",
        "/admin/v1/live/snapshot",
        "/admin/v1/playground/chat/completions",
        "/admin/v1/playground/completions",
        "/admin/v1/queues",
        "/admin/v1/slo",
        "/admin/v1/slo-classes",
        "/admin/v1/slo-classes/{name}",
        "/admin/v1/tenants",
        "/admin/v1/tenants/{name}",
        "/admin/v1/tenants/{name}/keys",
        "/admin/v1/tenants/{name}/keys/{prefix}",
        "/admin/v1/devices",
        "/admin/v1/workers",
        "/admin/v1/status",
    }
    with httpx.Client(base_url=server.http_url) as client:
        for method, path in sorted(routes):
            for headers in ({}, {"authorization": "Bearer mk-wrong"}, {"authorization": server.admin_key}):
                response = client.request(method, path, headers=headers)
                assert response.status_code == 401, (method, path)
                assert response.json()["error"]["code"] == "invalid_api_key"
                assert response.headers["www-authenticate"] == "Bearer"


def test_the_admin_key_is_no_key_for_inference_and_is_kept_from_the_log(server: RunningServer) -> None:
    assert (server.data_dir / "admin.key").stat().st_mode & 0o777 == 0o600
    assert server.admin_key not in server.log()


def test_an_answer_carries_the_request_id_that_the_client_sent(server: RunningServer) -> None:
    for path in ("/admin/v1/status", "/admin/v1/nothing"):
        response = server.client.get(f"{server.http_url}{path}", headers={"x-request-id": "mine-7"})
        assert response.headers["x-request-id"] == "mine-7"


# Models.


def test_a_model_is_registered_deployed_and_answers(server: RunningServer, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "model", seed=1)
    done = register(server, "org/second", source)
    assert done["state"] == "done"
    assert done["error"] is None
    assert done["done_bytes"] == done["total_bytes"] > 0
    assert done in call(server, "GET", "/registrations")
    assert [stage["name"] for stage in done["stages"]] == ["check", "copy", "check the copy", "pack"]
    assert {stage["state"] for stage in done["stages"]} == {"done"}
    for act in ("cancel", "resume"):
        path = f"/registrations/{done['id']}/{act}"
        assert refusal(server, "POST", path, status=409)["code"] == "conflict"
        assert refusal(server, "POST", f"/registrations/nothing/{act}", status=404)["code"] == "not_found"

    (version,) = call(server, "GET", "/models/org/second/versions")
    assert version["number"] == 1
    assert version["architecture"] == "llama"
    assert version["max_model_len"] == MAX_MODEL_LEN
    assert version["source"] == str(source)
    assert len(version["digest"]) == 64
    assert version["num_bytes"] > (source / "model.safetensors").stat().st_size
    listed = {model["name"]: model for model in call(server, "GET", "/models")}
    assert listed["org/second"]["versions"] == 1
    assert listed["org/second"]["deployments"] == ["org/second"]
    assert complete(server, "org/second").json()["usage"]["completion_tokens"] == 3

    assert register(server, "org/second", source)["state"] == "done"
    assert len(call(server, "GET", "/models/org/second/versions")) == 1
    write_checkpoint(source, seed=2)
    assert register(server, "org/second", source)["state"] == "done"
    assert [v["number"] for v in call(server, "GET", "/models/org/second/versions")] == [1, 2]
    assert call(server, "GET", "/deployments/org/second")["version"] == 2
    assert complete(server, "org/second").status_code == 200


def test_a_model_may_be_registered_without_being_deployed(server: RunningServer, tmp_path: Path) -> None:
    assert register(server, "stored", write_checkpoint(tmp_path / "m", 3), deploy=False)["state"] == "done"
    assert complete(server, "stored").json()["error"]["code"] == "model_not_found"
    assert refusal(server, "GET", "/deployments/stored", status=404)["code"] == "not_found"


def pickled(folder: Path) -> str:
    write_checkpoint(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return str(folder)


def cut_short(folder: Path) -> str:
    weights = write_checkpoint(folder) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return str(folder)


BAD_SOURCES = {
    "missing folder": (lambda folder: str(folder / "nowhere"), "there is nothing at"),
    "pickle": (pickled, "pytorch_model.bin is a pickle"),
    "unsupported": (lambda folder: str(write_checkpoint(folder, architecture="Bloom")), "bloom"),
    "cut short": (cut_short, "model.safetensors"),
    "no hub": (lambda folder: "hf://org/name", "cannot fetch hf://org/name"),
    "not a hub name": (lambda folder: "hf://name", "hf://org/name[@revision]"),
}


@pytest.mark.parametrize("kind", BAD_SOURCES)
def test_a_bad_source_fails_with_its_reason_and_leaves_nothing(
    server: RunningServer, tmp_path: Path, kind: str
) -> None:
    make, reason = BAD_SOURCES[kind]
    failed = register(server, "bad", make(tmp_path / "model"))
    assert failed["state"] == "failed"
    assert reason in failed["error"]
    assert "bad" not in [model["name"] for model in call(server, "GET", "/models")]
    assert complete(server, "bad").status_code == 404


@pytest.mark.parametrize("name", ["", "-x", "a b", "x" * 129, "é", "../up"])
def test_what_is_no_name_is_refused_at_once(server: RunningServer, name: str) -> None:
    error = refusal(server, "POST", "/models", {"name": name, "source": "/x"}, status=400)
    assert error["param"] == "name"
    assert "letters" in error["message"]
    body = {"name": name, "model": "first"}
    assert refusal(server, "POST", "/deployments", body, status=400)["param"] == "name"


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"name": "x"}, "missing_required_parameter", "source"),
        ({"name": "x", "source": "/x", "sauce": 1}, "unsupported_parameter", "sauce"),
        ({"name": "x", "source": "/x", "policy": {"pinnd": 1}}, "unsupported_parameter", "policy.pinnd"),
        ({"name": "x", "source": "/x", "policy": {"priority": 0.5}}, "invalid_type", "policy.priority"),
        ([], "invalid_value", None),
    ],
)
def test_a_bad_body_is_refused_by_the_name_of_its_field(
    server: RunningServer, body: Any, code: str, param: str | None
) -> None:
    error = refusal(server, "POST", "/models", body, status=400)
    assert error["param"] == param
    assert error["code"] == code
    assert error["type"] == "invalid_request_error"


def test_registering_again_keeps_the_policy_and_changes_what_is_named(
    server: RunningServer, tmp_path: Path
) -> None:
    source = write_checkpoint(tmp_path / "m", 4)
    register(server, "kept", source, policy={"priority": 3, "max_model_len": 100})
    assert register(server, "kept", source, policy={"max_model_len": 200})["state"] == "done"
    policy = call(server, "GET", "/deployments/kept")["policy"]
    assert (policy["priority"], policy["max_model_len"]) == (3, 200)


def test_a_registration_does_not_take_over_the_deployment_of_another_model(
    server: RunningServer, tmp_path: Path
) -> None:
    call(server, "POST", "/deployments", {"name": "taken", "model": "first"}, 201)
    failed = register(server, "taken", write_checkpoint(tmp_path / "m", 5))
    assert failed["state"] == "failed"
    assert "is of model 'first'" in failed["error"]
    assert call(server, "GET", "/deployments/taken")["model"] == "first"


def test_a_model_is_deleted_with_its_files_once_nothing_uses_it(
    server: RunningServer, tmp_path: Path
) -> None:
    store = server.data_dir / "store"
    register(server, "gone", write_checkpoint(tmp_path / "m", 6))
    digest = call(server, "GET", "/models/gone/versions")[0]["digest"]
    assert (store / "artifacts" / digest).is_dir()
    assert list((store / "packed").glob(f"{digest[:16]}*"))

    error = refusal(server, "DELETE", "/models/gone", status=409)
    assert "deployment 'gone'" in error["message"]
    call(server, "DELETE", "/deployments/gone", status=204)
    call(server, "DELETE", "/models/gone", status=204)
    assert not (store / "artifacts" / digest).exists()
    assert not list((store / "packed").glob(f"{digest[:16]}*"))
    assert refusal(server, "GET", "/models/gone/versions", status=404)["code"] == "not_found"
    assert refusal(server, "DELETE", "/models/gone", status=404)["code"] == "not_found"
    assert refusal(server, "GET", "/registrations/nothing", status=404)["code"] == "not_found"


# Deployments.


def test_a_deployment_is_made_shown_changed_and_deleted(server: RunningServer, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "m", 7)
    register(server, "base", source, deploy=False)
    register(server, "base", write_checkpoint(source, 8), deploy=False)
    body = {"name": "alias", "model": "base", "version": 1, "policy": {"pinned": True, "priority": 2}}
    made = call(server, "POST", "/deployments", body, 201)
    assert made["policy"] == {
        "enabled": True,
        "pinned": True,
        "priority": 2,
        "max_model_len": None,
        "kv_guarantee_bytes": None,
        "kv_cap_bytes": None,
        "idle_timeout_s": None,
        "min_replicas": 0,
        "max_replicas": 1,
        "prefix_cache": "tenant",
    }
    assert (made["model"], made["version"], made["precision"], made["engine"]) == ("base", 1, "fp32", "null")
    assert call(server, "GET", "/deployments/alias")["policy"] == made["policy"]
    assert [d["name"] for d in call(server, "GET", "/deployments") if d["model"] == "base"] == ["alias"]
    assert complete(server, "alias").status_code == 200

    changes = {
        "version": 2,
        "pinned": False,
        "prefix_cache": "shared",
        "max_model_len": 64,
        "kv_guarantee_bytes": 4 * MIB,
    }
    changed = call(server, "PATCH", "/deployments/alias", changes)
    assert changed["version"] == 2
    del changes["version"]
    assert changed["policy"] == {**made["policy"], **changes}
    cards = server.client.get(f"{server.http_url}/v1/models").json()["data"]
    assert {card["id"]: card["max_model_len"] for card in cards}["alias"] == 64
    assert complete(server, "alias").status_code == 200
    back = call(server, "PATCH", "/deployments/alias", {"max_model_len": None})
    assert back["policy"]["max_model_len"] is None

    call(server, "DELETE", "/deployments/alias", status=204)
    assert refusal(server, "DELETE", "/deployments/alias", status=404)["code"] == "not_found"
    assert complete(server, "alias").status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code", "param"),
    [
        ("POST", "/deployments", {"name": "first", "model": "first"}, 409, "conflict", "name"),
        ("POST", "/deployments", {"name": "x", "model": "nothing"}, 404, "not_found", None),
        ("POST", "/deployments", {"name": "x", "model": "first", "version": 9}, 404, "not_found", None),
        ("GET", "/deployments/nothing", None, 404, "not_found", None),
        ("PATCH", "/deployments/nothing", {"pinned": True}, 404, "not_found", None),
        ("PATCH", "/deployments/first", {"pinned": "perhaps"}, 400, "invalid_type", "pinned"),
        ("PATCH", "/deployments/first", {"colour": 1}, 400, "unsupported_parameter", "colour"),
        ("PATCH", "/deployments/first", {"max_model_len": 9999}, 400, "invalid_value", "max_model_len"),
        ("PATCH", "/deployments/first", {"version": 9}, 404, "not_found", None),
        ("PATCH", "/deployments/first", {"version": None}, 400, "invalid_value", "version"),
        ("POST", "/deployments/nothing/sleep", None, 404, "model_not_found", "model"),
        ("POST", "/deployments/nothing/wake", None, 404, "model_not_found", "model"),
        ("PUT", "/deployments/first", None, 405, "method_not_allowed", None),
        ("GET", "/nothing", None, 404, "unknown_url", None),
    ],
)
def test_what_cannot_be_done_to_a_deployment_says_why(
    server: RunningServer, method: str, path: str, body: Any, status: int, code: str, param: str | None
) -> None:
    error = refusal(server, method, path, body, status=status)
    assert error["code"] == code
    assert error["param"] == param


def test_a_deployment_sleeps_and_wakes_when_told_and_on_request(server: RunningServer) -> None:
    call(server, "POST", "/deployments/first/wake", status=204)
    assert residency(server, "first") == "resident"
    call(server, "POST", "/deployments/first/sleep", status=204)
    assert residency(server, "first") == "warm"
    assert not [owner for owner in server.status()["devices"][0]["owners"] if "weights:first" in owner]
    call(server, "POST", "/deployments/first/sleep", status=204)
    assert complete(server, "first").status_code == 200
    assert residency(server, "first") == "resident"


def test_a_disabled_deployment_is_known_and_not_served(server: RunningServer) -> None:
    call(server, "POST", "/deployments", {"name": "off", "model": "first"}, 201)
    call(server, "PATCH", "/deployments/off", {"enabled": False})
    response = complete(server, "off")
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "model_unavailable"
    assert "disabled" in response.json()["error"]["message"]
    ids = [card["id"] for card in server.client.get(f"{server.http_url}/v1/models").json()["data"]]
    assert "off" not in ids
    assert refusal(server, "POST", "/deployments/off/wake", status=503)["code"] == "model_unavailable"
    call(server, "PATCH", "/deployments/off", {"enabled": True})
    assert complete(server, "off").status_code == 200
    call(server, "PATCH", "/deployments/off", {"enabled": False})
    call(server, "DELETE", "/deployments/off", status=204)
    assert complete(server, "off").status_code == 404


# Tenants and keys.


def test_tenants_and_their_keys(server: RunningServer) -> None:
    assert call(server, "POST", "/tenants", {"name": "acme"}, 201)["keys"] == 0
    assert refusal(server, "POST", "/tenants", {"name": "acme"}, status=409)["param"] == "name"
    assert refusal(server, "POST", "/tenants", {"name": "a b"}, status=400)["param"] == "name"
    made = call(server, "POST", "/tenants/acme/keys", {"name": "laptop"}, 201)
    key = made.pop("key")
    assert key.startswith(made["prefix"])
    assert len(key) > 40
    assert call(server, "GET", "/tenants/acme/keys") == [made]
    assert made["revoked"] is None
    assert [t["keys"] for t in call(server, "GET", "/tenants") if t["name"] == "acme"] == [1]
    assert key.encode() not in b"".join(file.read_bytes() for file in server.data_dir.glob("registry*"))

    assert "revoke" in refusal(server, "DELETE", "/tenants/acme", status=409)["message"]
    call(server, "DELETE", f"/tenants/acme/keys/{made['prefix']}", status=204)
    assert call(server, "GET", "/tenants/acme/keys")[0]["revoked"] is not None
    assert [t["keys"] for t in call(server, "GET", "/tenants") if t["name"] == "acme"] == [0]
    call(server, "DELETE", "/tenants/acme", status=204)
    for method, path in (
        ("DELETE", "/tenants/acme"),
        ("GET", "/tenants/acme/keys"),
        ("POST", "/tenants/acme/keys"),
        ("DELETE", "/tenants/acme/keys/mk-"),
    ):
        body: dict[str, Any] | None = {} if method == "POST" else None
        assert refusal(server, method, path, body, status=404)["code"] == "not_found"


def test_long_lists_come_in_pages(server: RunningServer) -> None:
    names = [f"paged-{number}" for number in range(5)]
    for name in names:
        call(server, "POST", "/tenants", {"name": name}, 201)
        call(server, "POST", "/tenants/paged-0/keys", {"name": f"for {name}"}, 201)
    first = server.admin("GET", "/tenants?search=paged-&limit=2")
    assert [each["name"] for each in first.json()] == names[:2]
    assert [each["keys"] for each in first.json()] == [5, 0]
    assert first.headers["x-mooring-next"] == "paged-1"
    link = "/admin/v1/tenants?search=paged-&limit=2&after=paged-1"
    assert first.headers["link"] == f'<{link}>; rel="next"'
    second = server.admin("GET", link.removeprefix("/admin/v1"))
    last = server.admin("GET", "/tenants?search=paged-&limit=2&after=paged-3")
    assert [each["name"] for each in second.json() + last.json()] == names[2:]
    assert "x-mooring-next" not in last.headers
    whole = server.admin("GET", "/tenants/paged-0/keys")
    keys = server.admin("GET", "/tenants/paged-0/keys?limit=3")
    rest = server.admin("GET", f"/tenants/paged-0/keys?limit=3&after={keys.headers['x-mooring-next']}")
    assert keys.json() + rest.json() == whole.json()
    assert [each["name"] for each in call(server, "GET", "/tenants/paged-0/keys?search=for paged-3")] == [
        "for paged-3"
    ]
    for path in ("/models", "/deployments", "/registrations"):
        everything = call(server, "GET", path)
        page = server.admin("GET", f"{path}?limit=1")
        rest = server.admin("GET", f"{path}?after={page.headers['x-mooring-next']}")
        assert page.json() + rest.json() == everything
    events = server.admin("GET", "/events?limit=2")
    older = call(server, "GET", f"/events?limit=2&before={events.headers['x-mooring-next']}")
    assert [each["id"] for each in events.json() + older] == [
        each["id"] for each in call(server, "GET", "/events?limit=4")
    ]
    for query in ("limit=0", "limit=1001", "limit=x", "after="):
        assert refusal(server, "GET", f"/tenants?{query}", status=400)["param"]
    assert refusal(server, "GET", "/tenants/paged-0/keys?after=x", status=400)["param"] == "after"
    assert refusal(server, "GET", "/registrations?after=x", status=400)["param"] == "after"


# Status.


def test_status_has_the_shape_that_is_promised(server: RunningServer) -> None:
    assert complete(server, "first").status_code == 200
    status = server.status()
    assert status.keys() == {"devices", "workers", "deployments", "queues", "ledger_mismatches"}
    (queue,) = status["queues"]
    assert (queue["device"], queue["num_in_time"], queue["num_late"], queue["first"]) == ("cpu", 0, 0, [])
    assert status["ledger_mismatches"] == 0
    (device,) = status["devices"]
    assert device.keys() == (
        {
            "name",
            "budget_bytes",
            "owners",
            "memory",
            "utilization",
            "sampled_at",
            "segments",
            "running",
            "parked",
        }
    )
    assert (device["name"], device["budget_bytes"]) == ("cpu", 64 * MIB)
    assert sum(device["owners"].values()) <= device["budget_bytes"]
    (worker,) = status["workers"]
    assert worker == {
        "worker_id": "null-0",
        "pid": worker["pid"],
        "device": "cpu",
        "state": "ready",
        "stats": worker["stats"],
    }
    assert worker["stats"].keys() == {field.name for field in dataclasses.fields(WorkerStats)}
    assert psutil.Process(worker["pid"]).ppid() == server.process.pid

    (first,) = [each for each in status["deployments"] if each["name"] == "first"]
    assert first.keys() == {"name", "engine", "residency", "reason", "step_costs", "replicas"}
    assert (first["engine"], first["residency"]) == ("null", "resident")
    (replica,) = first["replicas"]
    assert replica.keys() == (
        {"id", "worker", "residency", "reason", "for_s", "lease_bytes", "num_active", "stats"}
    )
    assert (replica["worker"], replica["residency"]) == ("null-0", "resident")
    assert replica["stats"].keys() == {field.name for field in dataclasses.fields(ReplicaStats)}
    assert replica["lease_bytes"] == device["owners"][f"weights:{replica['id']}"] > 0
    (again,) = call(server, "GET", "/workers")
    assert again | {"stats": None} == worker | {"stats": None}


def test_devices_tell_their_own_figures(server: RunningServer) -> None:
    (device,) = call(server, "GET", "/devices")
    memory = device["memory"]
    assert memory.keys() == {field.name for field in dataclasses.fields(DeviceMemory)} | {"free_bytes"}
    assert 0 < memory["total_bytes"] <= psutil.virtual_memory().total
    processes = [psutil.Process(server.process.pid), *map(psutil.Process, server.worker_pids())]
    resident_bytes = sum(process.memory_info().rss for process in processes)
    assert 0.3 * resident_bytes < memory["ours_bytes"] < 1.5 * resident_bytes
    assert memory["used_bytes"] >= memory["ours_bytes"]


def test_acts_and_refused_keys_leave_a_trace(server: RunningServer) -> None:
    call(server, "POST", "/tenants", {"name": "traced"}, 201)
    call(server, "DELETE", "/tenants/traced", status=204)
    refused = server.client.get(f"{server.http_url}/admin/v1/status", headers={"x-api-key": "mk-secret"})
    assert refused.status_code == 401
    metrics = server.client.get(f"{server.http_url}/metrics").text
    for act, outcome in (("POST /tenants", 201), ("DELETE /tenants/{name}", 204)):
        assert f'mooring_admin_requests_total{{act="{act}",outcome="{outcome}"}}' in metrics
    assert 'mooring_refused_keys_total{door="admin",reason="wrong"}' in metrics
    assert "admin: DELETE /tenants/{name} ('/admin/v1/tenants/traced') from 127.0.0.1: 204" in server.log()
    assert "mk-secret" not in server.log()
