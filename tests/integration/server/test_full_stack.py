"""The whole server with the torch engine: real processes, real clients, three models on a budget for two."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from support.running_server import RunningServer
from support.tiny_models import NUM_TOKENS, make_tiny_model

from benchmarks.oversubscription import measure as measure_oversubscription
from benchmarks.streams import Agreement, count_agreements, draw_streams, run_streams
from benchmarks.worker_death import measure as measure_worker_death
from engines.checkpoint.model_config import ModelConfig, describe, kv_groups
from memory_manager.kv_spec import PAGE_BYTES, kv_bytes_for_tokens, round_to_pages

pytestmark = pytest.mark.integration

MODELS = ("a", "b", "c")
CONTEXT = 512


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        name: make_tiny_model(
            root / name, seed, hidden_size=256, num_layers=4, max_position_embeddings=CONTEXT
        )
        for seed, name in enumerate(MODELS)
    }


def bytes_of_one_model(folder: Path) -> int:
    """Weights and the KV of a full context, in fp32."""
    description = describe(folder)
    groups = kv_groups(ModelConfig.from_dict(description.config), 4)
    return round_to_pages(description.weights_bytes("fp32")) + kv_bytes_for_tokens(groups, CONTEXT)


@pytest.fixture(scope="module")
def budget_bytes(folders: dict[str, Path]) -> int:
    """Holds two of the three models and the pool's null page."""
    return 2 * bytes_of_one_model(folders["a"]) + 2 * PAGE_BYTES


@pytest.fixture(scope="module")
def server(
    folders: dict[str, Path], budget_bytes: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    flags = ["--dtype", "float32", "--memory-budget", str(budget_bytes)]
    environment = {"MOORING_PLANNER__STARVE_AFTER_S": "1"}
    with RunningServer(tmp_path_factory.mktemp("server") / "data", folders, flags, environment) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.http_url}/v1", api_key="none", max_retries=0)


def test_three_models_finish_on_a_budget_for_two_with_the_text_each_gives_alone(
    server: RunningServer, budget_bytes: int
) -> None:
    streams = draw_streams(MODELS, 12, max_tokens=24, seed=1, vocab_size=NUM_TOKENS)
    references = asyncio.run(run_streams(server.grpc_target, streams, 1))
    assert [outcome.error for outcome in references if outcome.error] == []
    assert {outcome.finish_reason for outcome in references} == {"length"}
    figures = measure_oversubscription(server, streams, references, budget_bytes)
    assert figures["finished"] == figures["requests"] == len(streams)
    assert figures["altered"] == 0
    assert figures["equal"] + figures["near_ties"] == len(streams)
    assert figures["readings"] > 0
    assert 0 < figures["max_ledger_bytes"] <= budget_bytes
    assert figures["max_worker_rss_bytes"] <= figures["allowed_worker_rss_bytes"]


def test_a_killed_worker_changes_no_stream(server: RunningServer) -> None:
    """Over the two models that fit: the third one's streams could not all be under way at once."""
    streams = draw_streams(MODELS[:2], 8, max_tokens=96, seed=2, vocab_size=NUM_TOKENS)
    asyncio.run(run_streams(server.grpc_target, streams[:2], 1))  # both are resident now
    figures = measure_worker_death(server, streams)
    assert figures["workers_killed"] == 1
    assert figures["finished"] == len(streams) == 16
    assert figures["altered"] == 0


def test_a_long_answer_makes_room_for_another_model_and_goes_on_unchanged(server: RunningServer) -> None:
    long = draw_streams(MODELS[:2], 1, max_tokens=440, seed=6, vocab_size=NUM_TOKENS)
    short = draw_streams(MODELS[2:], 1, max_tokens=4, seed=7, vocab_size=NUM_TOKENS)
    references = asyncio.run(run_streams(server.grpc_target, long + short, 1))
    ended: list[int] = []

    def note_end(index: int, num_tokens: int) -> None:
        if num_tokens == (long + short)[index].max_tokens:
            ended.append(index)

    outcomes = asyncio.run(run_streams(server.grpc_target, long + short, 3, note_end))
    agreements = count_agreements(long + short, references, outcomes)
    assert agreements[Agreement.ALTERED] == agreements[Agreement.LOST] == 0
    assert ended[0] == 2, "the short answer of the third model came first"


def test_answers_over_http_and_grpc_are_the_same_tokens(server: RunningServer, client: openai.OpenAI) -> None:
    (stream,) = draw_streams(["b"], 1, max_tokens=16, seed=3, vocab_size=NUM_TOKENS, sampled_share=0)
    (outcome,) = asyncio.run(run_streams(server.grpc_target, [stream], 1))
    answer = client.completions.create(
        model="b",
        prompt=list(stream.prompt_ids),
        max_tokens=16,
        temperature=0,
        logprobs=0,
        extra_body={"ignore_eos": True},
    )
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.token_logprobs == pytest.approx(outcome.logprobs, abs=1e-4)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


def test_chat_streams_what_the_whole_answer_says(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    settings = {"model": "a", "messages": messages, "max_tokens": 32, "temperature": 0.8, "seed": 7}
    whole = client.chat.completions.create(**settings, stream=False)  # type: ignore[call-overload]
    chunks = list(client.chat.completions.create(**settings, stream=True))  # type: ignore[call-overload]
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert streamed == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_choices_differ_and_a_seed_repeats_them(client: openai.OpenAI) -> None:
    first, again = (
        client.completions.create(model="a", prompt="def add", n=3, seed=11, temperature=1.0, max_tokens=24)
        for _ in range(2)
    )
    texts = [choice.text for choice in first.choices]
    assert len(set(texts)) == 3
    assert texts == [choice.text for choice in again.choices]


def test_a_client_that_goes_away_frees_its_blocks(server: RunningServer) -> None:
    # Many choices, so that it runs for longer than the second between two polls of what workers hold.
    body = {"model": "a", "prompt": "x", "max_tokens": 480, "n": 128, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", f"{server.http_url}/v1/completions", json=body, timeout=30) as response:
        lines = response.iter_lines()  # kept: an iterator that is dropped closes the connection
        next(lines)
        assert kv_bytes(server, "a", lambda held: held > 0) > 0
    assert kv_bytes(server, "a", lambda held: held == 0) == 0


def kv_bytes(server: RunningServer, name: str, wanted: object) -> int:
    """KV that a deployment holds, once it is as wanted or five seconds have passed."""
    assert callable(wanted)
    deadline_s = time.monotonic() + 5
    while True:
        deployments = {each["name"]: each for each in server.status()["deployments"]}
        held = sum(replica["stats"]["kv_live_bytes"] for replica in deployments[name]["replicas"])
        if wanted(held) or time.monotonic() > deadline_s:
            return held
        time.sleep(0.05)


def test_bad_requests_cost_the_good_ones_nothing(server: RunningServer, client: openai.OpenAI) -> None:
    (stream,) = draw_streams(["a"], 1, max_tokens=64, seed=5, vocab_size=NUM_TOKENS)
    (reference,) = asyncio.run(run_streams(server.grpc_target, [stream], 1))

    def send_bad_ones() -> list[str]:
        codes = []
        for settings in (
            {"model": "absent", "prompt": "x"},
            {"model": "a", "prompt": [1] * (CONTEXT + 1)},
            {"model": "a", "prompt": "x", "max_tokens": CONTEXT + 1},
            {"model": "a", "prompt": "x", "temperature": -1},
            {"model": "a", "prompt": [100_000]},
        ):
            with pytest.raises(openai.APIStatusError) as caught:
                client.completions.create(**settings)  # type: ignore[call-overload]
            codes.append(str(caught.value.code))
        return codes

    with ThreadPoolExecutor(1) as pool:
        bad = pool.submit(send_bad_ones)
        (outcome,) = asyncio.run(run_streams(server.grpc_target, [stream], 1))
        codes = bad.result()
    assert codes[:3] == ["model_not_found", "context_length_exceeded", "context_length_exceeded"]
    assert outcome.token_ids == reference.token_ids


@pytest.mark.slow
def test_nothing_of_the_server_is_left_when_it_stops(folders: dict[str, Path], tmp_path: Path) -> None:
    flags = ["--dtype", "float32", "--memory-budget", "64MiB"]
    with RunningServer(tmp_path / "data", {"a": folders["a"]}, flags) as running:
        children = psutil.Process(running.process.pid).children(recursive=True)
        assert children
        assert running.stop() == 0
    assert not any(child.is_running() for child in children)
