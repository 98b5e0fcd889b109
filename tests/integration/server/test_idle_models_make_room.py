"""A model whose requests wait for KV beside one that idles: the idle one sleeps, and comes back when it is asked."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.running_server import RunningServer

from benchmarks.random_models import TINY_SHAPE, make_random_models

pytestmark = pytest.mark.integration

NUM_REQUESTS = 18
NUM_TOKENS = 320
"""Of each: in all 22 MiB of KV, of which the budget has a half."""


def complete(server: RunningServer, model: str, number: int = 0) -> int:
    prompt = [3 + (7 * number + 11 * i) % 1000 for i in range(128)]
    body = {"model": model, "prompt": prompt, "max_tokens": NUM_TOKENS - len(prompt), "ignore_eos": True}
    answer = server.client.post(f"{server.http_url}/v1/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["usage"]["completion_tokens"])


def residency(server: RunningServer, name: str) -> str:
    return next(str(x["residency"]) for x in server.status()["deployments"] if x["name"] == name)


def test_an_idle_model_sleeps_for_the_kv_of_a_busy_one(tmp_path: Path) -> None:
    folders = make_random_models(tmp_path / "models", TINY_SHAPE, ("busy", "idle"), "fp32")
    flags = ["--dtype", "float32", "--memory-budget", "26MiB"]
    with RunningServer(tmp_path / "data", folders, flags) as server:
        for name in folders:
            complete(server, name)
        assert {residency(server, name) for name in folders} == {"resident"}
        with ThreadPoolExecutor(NUM_REQUESTS) as clients:
            answers = [clients.submit(complete, server, "busy", number) for number in range(NUM_REQUESTS)]
            while residency(server, "idle") != "warm":
                assert not all(each.done() for each in answers), "all were answered and nothing slept"
                time.sleep(0.02)
            assert complete(server, "idle") == NUM_TOKENS - 128, "it is back at once"
            assert {each.result() for each in answers} == {NUM_TOKENS - 128}
        reasons = [event["reason"] for event in server.admin("GET", "/events?deployment=idle").json()]
        assert any("sequences have waited" in reason for reason in reasons)
        assert server.status()["ledger_mismatches"] == 0
