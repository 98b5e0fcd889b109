"""One server, two engines: each deployment has its own, and both share one budget."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from support.running_server import RunningServer
from support.tiny_models import make_tiny_model

from engines.checkpoint.model_config import ModelConfig, describe, kv_groups
from memory_manager.kv_spec import PAGE_BYTES, kv_bytes_for_tokens, round_to_pages

pytestmark = pytest.mark.integration

CONTEXT = 512


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A budget that holds one model with the KV of a full context, and each worker's null page."""
    root = tmp_path_factory.mktemp("two-engines")
    folder = make_tiny_model(
        root / "model", 0, hidden_size=256, num_layers=4, max_position_embeddings=CONTEXT
    )
    description = describe(folder)
    groups = kv_groups(ModelConfig.from_dict(description.config), 4)
    weights_bytes = round_to_pages(description.weights_bytes("fp32"))
    budget_bytes = weights_bytes + kv_bytes_for_tokens(groups, CONTEXT) + 3 * PAGE_BYTES
    flags = ["--dtype", "float32", "--memory-budget", str(budget_bytes)]
    environment = {"MOORING_PLANNER__STARVE_AFTER_S": "1"}
    with RunningServer(root / "data", {"torch": folder}, flags, environment) as running:
        created = running.admin("POST", "/deployments", {"name": "null", "model": "torch", "engine": "null"})
        assert created.status_code == 201, created.text
        assert created.json()["engine"] == "null"
        yield running


def ask(server: RunningServer, model: str) -> int:
    """Tokens of an answer."""
    body = {"model": model, "prompt": [5, 6, 7], "max_tokens": 8, "ignore_eos": True}
    response = httpx.post(f"{server.http_url}/v1/completions", json=body, timeout=60)
    assert response.status_code == 200, response.text
    return int(response.json()["usage"]["completion_tokens"])


def test_each_has_a_worker_and_both_take_turns_in_one_budget(server: RunningServer) -> None:
    with ThreadPoolExecutor(8) as pool:
        counts = list(pool.map(lambda number: ask(server, ("torch", "null")[number % 2]), range(24)))
    assert counts == [8] * 24
    status = server.status()
    assert {each["worker_id"] for each in status["workers"]} == {"torch-0", "null-0"}
    assert {each["name"]: each["engine"] for each in status["deployments"]} == {
        "torch": "torch",
        "null": "null",
    }
    hosts = {each["name"]: {r["worker"] for r in each["replicas"]} for each in status["deployments"]}
    assert hosts["torch"] <= {"torch-0", None}
    assert hosts["null"] <= {"null-0", None}
    assert status["ledger_mismatches"] == 0


def test_an_engine_that_is_not_there_is_refused_by_name(server: RunningServer) -> None:
    refused = server.admin("POST", "/deployments", {"name": "odd", "model": "torch", "engine": "abacus"})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "engine"
