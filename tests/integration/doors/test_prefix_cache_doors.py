"""The prefix cache as clients see it: usage, salts, tenants, policies, metrics."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.running_server import RunningServer
from support.tiny_models import make_tiny_model

from mooring.v1 import inference_pb2 as pb
from mooring.v1 import inference_pb2_grpc

pytestmark = pytest.mark.integration

BLOCK = 16


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    root = tmp_path_factory.mktemp("models")
    folders: dict[str, Path] = {"m": make_tiny_model(root / "m")}
    flags = ["--dtype", "float32", "--memory-budget", "64MiB"]
    with RunningServer(tmp_path_factory.mktemp("server") / "data", folders, flags) as running:
        yield running


@pytest.fixture(scope="module")
def keys(server: RunningServer) -> dict[str, str]:
    """Of two tenants."""
    made = {}
    for tenant in ("ada", "bob"):
        assert server.admin("POST", "/tenants", {"name": tenant}).status_code == 201
        made[tenant] = server.admin("POST", f"/tenants/{tenant}/keys", {"name": "k"}).json()["key"]
    return made


def prompt_of(seed: int) -> list[int]:
    return [3 + (7 * seed + 11 * i) % 290 for i in range(5 * BLOCK)]


def complete(server: RunningServer, key: str, prompt: list[int], **fields: Any) -> dict[str, Any]:
    body = {"model": "m", "prompt": prompt, "max_tokens": 4, "temperature": 0, "ignore_eos": True, **fields}
    answer = server.client.post(
        f"{server.http_url}/v1/completions", json=body, headers={"authorization": f"Bearer {key}"}
    )
    assert answer.status_code == 200, answer.text
    if fields.get("stream"):
        events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
        return json.loads(events[-1])  # type: ignore[no-any-return]
    return answer.json()  # type: ignore[no-any-return]


def cached(answer: dict[str, Any]) -> int:
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


def test_usage_says_what_was_found(server: RunningServer, keys: dict[str, str]) -> None:
    prompt = prompt_of(1)
    first = complete(server, keys["ada"], prompt)
    again = complete(server, keys["ada"], prompt)
    assert (cached(first), cached(again)) == (0, 4 * BLOCK)
    assert again["choices"][0]["text"] == first["choices"][0]["text"]
    streamed = complete(server, keys["ada"], prompt, stream=True, stream_options={"include_usage": True})
    assert cached(streamed) == 4 * BLOCK
    several = complete(server, keys["ada"], prompt, n=2)
    assert cached(several) == 4 * BLOCK
    batch = complete(server, keys["ada"], [prompt, prompt_of(99)])  # type: ignore[list-item]
    assert cached(batch) == 4 * BLOCK


def test_a_tenant_and_a_salt_find_only_their_own(server: RunningServer, keys: dict[str, str]) -> None:
    prompt = prompt_of(2)
    assert cached(complete(server, keys["ada"], prompt)) == 0
    assert cached(complete(server, keys["bob"], prompt)) == 0
    assert cached(complete(server, keys["ada"], prompt, cache_salt="pepper")) == 0
    for key, fields in ((keys["ada"], {}), (keys["bob"], {}), (keys["ada"], {"cache_salt": "pepper"})):
        assert cached(complete(server, key, prompt, **fields)) == 4 * BLOCK


def test_an_empty_salt_is_refused_by_name(server: RunningServer, keys: dict[str, str]) -> None:
    body = {"model": "m", "prompt": "hi", "cache_salt": ""}
    headers = {"authorization": f"Bearer {keys['ada']}"}
    answer = server.client.post(f"{server.http_url}/v1/completions", json=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "cache_salt")


def test_native_grpc_tells_and_takes_the_same(server: RunningServer, keys: dict[str, str]) -> None:
    metadata = (("authorization", f"Bearer {keys['ada']}"),)

    def num_cached(**fields: Any) -> int:
        request = pb.GenerateTextRequest(
            model="m", prompt_token_ids=pb.TokenIds(ids=prompt_of(3)), max_tokens=2, **fields
        )
        with grpc.insecure_channel(server.grpc_target) as channel:
            stub = inference_pb2_grpc.InferenceStub(channel)  # type: ignore[no-untyped-call]
            return int(list(stub.Generate(request, metadata=metadata, timeout=30))[-1].usage.cached_tokens)

    assert [num_cached(), num_cached(), num_cached(cache_salt="s"), num_cached(cache_salt="s")] == (
        [0, 4 * BLOCK, 0, 4 * BLOCK]
    )


def test_the_policy_decides_who_shares(server: RunningServer, keys: dict[str, str]) -> None:
    def set_policy(choice: str) -> None:
        assert server.admin("PATCH", "/deployments/m", {"prefix_cache": choice}).status_code == 200

    try:
        set_policy("shared")
        assert cached(complete(server, keys["ada"], prompt_of(4))) == 0
        assert cached(complete(server, keys["bob"], prompt_of(4))) == 4 * BLOCK
        set_policy("off")
        assert [cached(complete(server, keys["bob"], prompt_of(4))) for _ in range(2)] == [0, 0]
    finally:
        set_policy("tenant")
    answer = server.admin("PATCH", "/deployments/m", {"prefix_cache": "everyone"})
    assert answer.status_code == 400
    assert "prefix_cache" in answer.json()["error"]["param"]


def figures(server: RunningServer) -> dict[str, float]:
    text = server.client.get(f"{server.http_url}/metrics").text
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith(("vllm:prefix_cache", "vllm:kv_cache_usage"))
        and not sample.name.endswith("_created")
    }


def test_metrics_and_status_tell_of_hits_and_of_what_is_kept(
    server: RunningServer, keys: dict[str, str]
) -> None:
    for _ in range(2):
        complete(server, keys["ada"], prompt_of(5))
    deadline_s = time.monotonic() + 20
    while True:  # until a poll of the worker after the end of both
        found = figures(server)
        if found["vllm:prefix_cache_hits_total"] >= 4 * BLOCK and found["vllm:kv_cache_usage_perc"] == 0:
            break
        assert time.monotonic() < deadline_s, found
        time.sleep(0.1)
    assert found["vllm:prefix_cache_queries_total"] >= found["vllm:prefix_cache_hits_total"]
    (replica,) = server.status()["deployments"][0]["replicas"]
    assert replica["stats"]["kv_live_bytes"] == 0
    assert replica["stats"]["kv_cached_bytes"] > 0


def test_a_model_keeps_its_blocks_while_it_sleeps(server: RunningServer, keys: dict[str, str]) -> None:
    first = complete(server, keys["ada"], prompt_of(6))
    assert server.admin("POST", "/deployments/m/sleep").status_code < 300
    again = complete(server, keys["ada"], prompt_of(6))
    assert cached(again) > 0
    assert again["choices"][0]["text"] == first["choices"][0]["text"]
