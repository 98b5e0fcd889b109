"""The playground's calls at a real server: who they are for, what they answer, and that leaving ends them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from support.running_server import RunningServer
from support.small_checkpoint import NULL_ENVIRONMENT, write_checkpoint
from support.until import until

pytestmark = pytest.mark.integration

CHAT = {"model": "a", "messages": [{"role": "user", "content": "hello"}]}
TIMINGS = {"ttft_s", "queue_s", "wake_s", "prefill_s", "decode_s", "tokens_per_s"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One model whose tokens take 20 ms each."""
    root = tmp_path_factory.mktemp("playground")
    environment = {**NULL_ENVIRONMENT, "MOORING_NULL__STEP_TIME_S": "0.02"}
    flags = ["--engine", "null", "--memory-budget", "64MiB"]
    with RunningServer(root / "data", {"a": write_checkpoint(root / "a")}, flags, environment) as running:
        yield running


def post(server: RunningServer, path: str, body: Any, **headers: str) -> httpx.Response:
    given = {"authorization": f"Bearer {server.admin_key}", **headers}
    return server.client.post(f"{server.http_url}/admin/v1/playground/{path}", json=body, headers=given)


def num_successes(server: RunningServer, tenant: str) -> float:
    page = server.client.get(f"{server.http_url}/metrics").text
    lines = [line for line in page.splitlines() if line.startswith("vllm:request_success_total{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines if f'tenant="{tenant}"' in line)


def num_running(server: RunningServer) -> int:
    return sum(
        replica["num_active"] for each in server.status()["deployments"] for replica in each["replicas"]
    )


def test_the_answer_is_that_of_the_same_call_of_a_client(server: RunningServer) -> None:
    bodies = {
        "chat/completions": {**CHAT, "max_tokens": 5, "seed": 7},
        "completions": {"model": "a", "prompt": "hello", "max_tokens": 5, "seed": 7},
    }
    for path, body in bodies.items():
        answer = post(server, path, body).json()
        public = server.client.post(f"{server.http_url}/v1/{path}", json=body).json()
        assert answer["choices"] == public["choices"]
        assert answer["usage"] == public["usage"]
        assert answer["mooring"].keys() == public["mooring"].keys() == TIMINGS


def test_it_runs_as_a_tenant_that_is_always_there_or_as_the_one_that_is_named(server: RunningServer) -> None:
    assert post(server, "chat/completions", {**CHAT, "max_tokens": 1}).status_code == 200
    assert num_successes(server, "playground") >= 1
    server.admin("POST", "/tenants", {"name": "acme"}).raise_for_status()
    named = {**CHAT, "max_tokens": 1}
    assert post(server, "chat/completions", named, **{"x-mooring-tenant": "acme"}).status_code == 200
    assert num_successes(server, "acme") == 1
    unknown = post(server, "chat/completions", named, **{"x-mooring-tenant": "nobody"})
    assert unknown.status_code == 404
    assert unknown.json()["error"]["code"] == "not_found"
    made = server.admin("POST", "/tenants", {"name": "playground"})
    assert made.status_code == 400
    assert made.json()["error"]["param"] == "name"
    assert server.admin("DELETE", "/tenants/playground").status_code == 404


def test_only_the_operator_may_call_it_and_errors_have_the_form_of_openai(server: RunningServer) -> None:
    url = f"{server.http_url}/admin/v1/playground/chat/completions"
    assert server.client.post(url, json=CHAT).json()["error"]["code"] == "invalid_api_key"
    tenants = server.new_key("visitor")
    assert server.client.post(url, json=CHAT, headers={"x-api-key": tenants}).status_code == 401
    wrong = post(server, "chat/completions", {**CHAT, "temperature": 9})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "temperature")
    assert (
        post(server, "chat/completions", {**CHAT, "model": "b"}).json()["error"]["code"] == "model_not_found"
    )


def test_a_stream_ends_with_counts_and_timings_for_the_official_client(server: RunningServer) -> None:
    client = openai.OpenAI(
        base_url=f"{server.http_url}/admin/v1/playground", api_key=server.admin_key, max_retries=0
    )
    *chunks, last = client.chat.completions.create(
        **CHAT, max_tokens=11, stream=True, stream_options={"include_usage": True}, temperature=0
    )
    assert all(chunk.usage is None and chunk.model_extra == {} for chunk in chunks)
    assert last.usage is not None
    assert last.usage.completion_tokens == 11
    assert last.model_extra is not None
    timings = last.model_extra["mooring"]
    assert timings.keys() == TIMINGS
    parts = [timings[name] for name in ("queue_s", "wake_s", "prefill_s")]
    assert timings["ttft_s"] == pytest.approx(sum(parts), abs=1e-5)
    assert timings["decode_s"] >= 10 * 0.02
    assert timings["tokens_per_s"] <= 10 / (10 * 0.02)


def test_a_stream_that_asks_for_no_usage_is_told_no_timings(server: RunningServer) -> None:
    text = post(server, "chat/completions", {**CHAT, "max_tokens": 2, "stream": True}).text
    chunks = [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n")[:-2]]
    assert not any("mooring" in chunk or "usage" in chunk for chunk in chunks)


def test_closing_the_connection_ends_the_request(server: RunningServer) -> None:
    url = f"{server.http_url}/admin/v1/playground/chat/completions"
    body = {**CHAT, "max_tokens": 400, "stream": True}
    headers = {"authorization": f"Bearer {server.admin_key}"}
    with httpx.stream("POST", url, json=body, headers=headers, timeout=20) as stream:
        assert stream.status_code == 200, stream.read()
        lines = stream.iter_lines()  # kept: it closes the connection when it goes
        assert next(lines)
        assert num_running(server) == 1
    until(lambda: num_running(server) == 0, "the request has ended", timeout_s=5)  # all of it takes 8 s
    page = server.client.get(f"{server.http_url}/metrics").text
    assert [
        line
        for line in page.splitlines()
        if line.startswith("vllm:request_success_total{")
        and 'reason="abort"' in line
        and "playground" in line
    ]
