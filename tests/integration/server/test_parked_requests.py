"""Two models in the room of one, on a whole server: long answers of both go on in turns, and outlive a death."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from support.running_server import RunningServer
from support.tiny_models import NUM_TOKENS, make_tiny_model

from benchmarks.streams import Agreement, Outcome, Stream, count_agreements, draw_streams, run_streams
from engines.checkpoint.model_config import ModelConfig, describe, kv_groups
from memory_manager.kv_spec import kv_bytes_for_tokens, round_to_pages

pytestmark = [pytest.mark.integration, pytest.mark.slow]

MODELS = ("a", "b")
CONTEXT = 512


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    root = tmp_path_factory.mktemp("models")
    folders = {
        name: make_tiny_model(
            root / name, seed, hidden_size=256, num_layers=4, max_position_embeddings=CONTEXT
        )
        for seed, name in enumerate(MODELS)
    }
    description = describe(folders["a"])
    groups = kv_groups(ModelConfig.from_dict(description.config), 4)
    weights_bytes = round_to_pages(description.weights_bytes("fp32"))
    # A page less than both take with one longest sequence and the null page.
    budget_bytes = 2 * weights_bytes + round_to_pages(kv_bytes_for_tokens(groups, CONTEXT))
    flags = ["--dtype", "float32", "--memory-budget", str(budget_bytes)]
    environment = {"MOORING_PLANNER__STARVE_AFTER_S": "0.05"}
    with RunningServer(tmp_path_factory.mktemp("server") / "data", folders, flags, environment) as running:
        yield running


@pytest.fixture(scope="module")
def streams() -> list[Stream]:
    return draw_streams(MODELS, 3, max_tokens=300, seed=1, vocab_size=NUM_TOKENS)


@pytest.fixture(scope="module")
def references(server: RunningServer, streams: list[Stream]) -> list[Outcome]:
    """Of one model after the other, so that none is parked."""
    outcomes: dict[int, Outcome] = {}
    for name in MODELS:
        own = [index for index, stream in enumerate(streams) if stream.model == name]
        found = asyncio.run(run_streams(server.grpc_target, [streams[index] for index in own], len(own)))
        outcomes.update(zip(own, found, strict=True))
    return [outcomes[index] for index in range(len(streams))]


def assert_all_ended_well(streams: list[Stream], references: list[Outcome], outcomes: list[Outcome]) -> None:
    assert [outcome.error for outcome in outcomes if outcome.error] == []
    agreements = count_agreements(streams, references, outcomes)
    assert agreements[Agreement.ALTERED] == agreements[Agreement.LOST] == 0


def num_events(server: RunningServer, kind: str) -> int:
    found = server.admin("GET", f"/events?limit=1000&kind={kind}").json()
    return len(found["events"] if isinstance(found, dict) else found)


def wait_parked(server: RunningServer) -> None:
    """Returns when requests are parked on a model that sleeps."""
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s:
        for deployment in server.status()["deployments"]:
            if deployment["residency"] == "warm" and deployment["replicas"][0]["num_active"]:
                return
        time.sleep(0.005)
    raise AssertionError("no request was ever parked")


def test_answers_of_both_go_on_in_turns_and_are_what_they_would_have_been(
    server: RunningServer, streams: list[Stream], references: list[Outcome]
) -> None:
    evicted, drained = (num_events(server, kind) for kind in ("evict", "drain"))
    outcomes = asyncio.run(run_streams(server.grpc_target, streams, len(streams)))
    assert_all_ended_well(streams, references, outcomes)
    assert num_events(server, "evict") >= evicted + 2
    assert num_events(server, "drain") == drained
    assert server.status()["ledger_mismatches"] == 0


def test_a_death_while_requests_are_parked_loses_none(
    server: RunningServer, streams: list[Stream], references: list[Outcome]
) -> None:
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(asyncio.run, run_streams(server.grpc_target, streams, len(streams)))
        wait_parked(server)
        (pid,) = server.worker_pids()
        os.kill(pid, signal.SIGKILL)
        outcomes = running.result(timeout=200)
    assert_all_ended_well(streams, references, outcomes)


def test_a_client_that_leaves_while_its_request_is_parked_frees_its_blocks(server: RunningServer) -> None:
    body = {"prompt": "x", "max_tokens": 480, "stream": True, "ignore_eos": True, "n": 64}
    url = f"{server.http_url}/v1/completions"
    with httpx.stream("POST", url, json={"model": "a", **body}, timeout=60) as first:
        next(first.iter_lines())
        with httpx.stream("POST", url, json={"model": "b", **body}, timeout=60) as second:
            next(second.iter_lines())
            first.close()  # both cannot be resident: its request is parked, unless it has just been woken again
    deadline_s = time.monotonic() + 20
    while time.monotonic() < deadline_s:
        replicas = [each["replicas"][0] for each in server.status()["deployments"]]
        if not any(each["num_active"] or each["stats"]["kv_live_bytes"] for each in replicas):
            return
        time.sleep(0.05)
    raise AssertionError(f"blocks or tickets are left: {replicas}")
