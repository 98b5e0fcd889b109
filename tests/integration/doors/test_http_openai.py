"""The HTTP door as clients meet it: uvicorn on a real port, the official client on the other side."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
from support.http_door import HttpDoor, open_door
from support.router_doors import (
    KEY,
    ScriptedStream,
    authenticate,
    byte_level_tokenizer,
    one_token_a_step,
    write_model_folder,
)

from engines.api import ChoiceTokens
from mooring.errors import ModelUnavailableError, OverloadedError, WorkerLostError
from router.request.bounds import RouterConfig
from router.request.request import GenerationRequest

# One door, and one event loop, for all tests that leave it as it was: to shut one takes longer than most of them.
pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

TOKENIZER = byte_level_tokenizer()
END = TOKENIZER.token_to_id("<|im_end|>")
ANSWER = "hello there 🦀!"
ANSWER_IDS = [*TOKENIZER.encode(ANSWER, add_special_tokens=False).ids, END]


def answer(request: GenerationRequest) -> ScriptedStream:
    """Says the answer, or plays out what the prompt asks for."""
    text = TOKENIZER.decode(list(request.prompt_ids))
    steps = one_token_a_step(request, ANSWER_IDS, stop_token_id=END)
    if "fail at once" in text:
        return ScriptedStream([OverloadedError("The queue is full.", retry_after_s=2.5)])
    if "too long" in text:
        raise OverloadedError("It would take too long.", predicted_wait_s=1.2345, should_retry=False)
    if "fail later" in text:
        return ScriptedStream([*steps[:3], WorkerLostError("The worker died twice.")])
    if "hang" in text:
        return ScriptedStream([steps[0], *steps[1:]], pause_s=30)
    if "crawl" in text:
        return ScriptedStream([[ChoiceTokens(0, [ANSWER_IDS[0]])]] * 4000, pause_s=0.01)
    if "refuse" in text:
        raise ModelUnavailableError("The model is disabled.")
    if "predict" in text:
        return ScriptedStream(steps, predicted_ttft_s=0.125 * len(request.prompt_ids))
    if "bug" in text:
        raise ZeroDivisionError("a bug")
    return ScriptedStream(steps)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("model"), TOKENIZER)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_door(folder: Path) -> AsyncIterator[HttpDoor]:
    async with open_door(folder, answer) as opened:
        yield opened


@pytest.fixture
def server(shared_door: HttpDoor) -> HttpDoor:
    shared_door.source.forget()
    return shared_door


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


async def test_models(server: HttpDoor) -> None:
    client = server.client()
    [model] = (await client.models.list()).data
    assert (model.id, model.owned_by, model.max_model_len) == ("org/tiny", "mooring", 96)  # type: ignore[attr-defined]
    assert await client.models.retrieve("org/tiny") == model
    with pytest.raises(openai.NotFoundError) as caught:
        await client.models.retrieve("nope")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


async def test_chat_whole(server: HttpDoor) -> None:
    result = await server.client().chat.completions.create(
        model="org/tiny", messages=user("hi"), seed=-3, stop=["xyz"], user="u", logit_bias={}
    )
    assert result.choices[0].message.content == ANSWER
    assert result.choices[0].finish_reason == "stop"
    request = server.source.requests[0]
    prompt = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert TOKENIZER.decode(list(request.prompt_ids), skip_special_tokens=False) == prompt
    assert request.sampling.temperature == 0.5  # the model's own suggestion
    assert request.sampling.max_tokens == 96 - len(request.prompt_ids)
    assert (request.stop, request.sampling.seed) == (("xyz",), (1 << 64) - 3)
    assert result.usage is not None
    assert result.usage.prompt_tokens == len(request.prompt_ids)
    assert result.usage.completion_tokens == len(ANSWER_IDS)
    assert server.source.streams[0].closed.is_set()


async def test_chat_stream_says_the_same_and_ends_with_its_usage(server: HttpDoor) -> None:
    stream = await server.client().chat.completions.create(
        model="org/tiny", messages=user("hi"), stream=True, n=2, stream_options={"include_usage": True}
    )
    texts, roles, reasons, usages = ["", ""], [], [], []
    async for chunk in stream:
        usages.append(chunk.usage)
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            roles += [choice.delta.role] if choice.delta.role else []
            reasons += [choice.finish_reason] if choice.finish_reason else []
    assert texts == [ANSWER, ANSWER]
    assert roles == ["assistant", "assistant"]
    assert reasons == ["stop", "stop"]
    assert usages[-1].completion_tokens == 2 * len(ANSWER_IDS)
    assert set(usages[:-1]) == {None}


async def test_the_wire_form_of_a_stream(server: HttpDoor) -> None:
    body = {"model": "org/tiny", "prompt": "hi", "stream": True, "max_tokens": 2}
    async with httpx.AsyncClient() as http:
        result = await http.post(f"{server.url}/v1/completions", json=body, headers={"x-request-id": "mine"})
    assert result.headers["content-type"].startswith("text/event-stream")
    assert result.headers["x-request-id"] == "mine"
    events = result.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == TOKENIZER.decode(ANSWER_IDS[:2])
    assert len(chunks) == 2
    assert {chunk["id"] for chunk in chunks} == {"cmpl-mine"}
    assert "usage" not in chunks[0]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


async def test_completion_with_logprobs(server: HttpDoor) -> None:
    result = await server.client().completions.create(model="org/tiny", prompt="hi", logprobs=1, max_tokens=3)
    choice = result.choices[0]
    assert (choice.text, choice.finish_reason) == (TOKENIZER.decode(ANSWER_IDS[:3]), "length")
    assert choice.logprobs is not None
    assert "".join(choice.logprobs.tokens or []) == choice.text
    assert choice.logprobs.token_logprobs == [-0.5] * 3
    assert choice.logprobs.text_offset is not None
    assert choice.logprobs.text_offset[0] == 0
    assert server.source.requests[0].sampling.max_tokens == 3


async def test_chat_with_logprobs(server: HttpDoor) -> None:
    result = await server.client().chat.completions.create(
        model="org/tiny", messages=user("hi"), logprobs=True, top_logprobs=2
    )
    entries = (result.choices[0].logprobs or pytest.fail("none")).content or []
    text = b"".join(bytes(entry.bytes or ()) for entry in entries[:-1])
    assert text.decode() == ANSWER
    assert entries[-1].token == "<|im_end|>"
    assert [len(entry.top_logprobs) for entry in entries] == [2] * len(ANSWER_IDS)


async def test_a_stop_string_ends_it(server: HttpDoor) -> None:
    stream = await server.client().completions.create(
        model="org/tiny", prompt="hi", stop=" there", max_tokens=50, stream=True
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks) == "hello"
    assert chunks[-1].choices[0].finish_reason == "stop"
    await server.closed()
    assert server.source.streams[0].stopped == [0]


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"temperature": 3}, 400, "invalid_value", "temperature"),
        ({"temperature": "hot"}, 400, "invalid_type", "temperature"),
        ({"suffix": "x"}, 400, "unsupported_parameter", "suffix"),
        ({"whatever": 1}, 400, "unsupported_parameter", "whatever"),
        ({"model": "nope"}, 404, "model_not_found", "model"),
        ({"max_tokens": 500}, 400, "context_length_exceeded", "max_tokens"),
        ({"prompt": "hi " * 200}, 400, "context_length_exceeded", "prompt"),
        ({"prompt": ""}, 400, "invalid_value", "prompt"),
        ({"prompt": "refuse"}, 503, "model_unavailable", None),
        ({"prompt": "bug"}, 500, "internal_error", None),
        ({"prompt": "fail at once"}, 503, "server_overloaded", None),
        ({"prompt": "fail at once", "stream": True}, 503, "server_overloaded", None),
    ],
)
async def test_errors_are_openai_error_objects(
    server: HttpDoor, fields: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    async with httpx.AsyncClient() as http:
        body = {"model": "org/tiny", "prompt": "hi", **fields}
        result = await http.post(f"{server.url}/v1/completions", json=body, headers={"x-request-id": "mine"})
    error = result.json()["error"]
    assert (result.status_code, error["code"], error["param"]) == (status, code, param)
    assert set(error) == {"message", "type", "param", "code"}
    assert result.headers["x-request-id"] == "mine"
    assert result.headers.get("retry-after") == ("3" if code == "server_overloaded" else None)
    for stream in server.source.streams:
        assert stream.closed.is_set()


async def test_clients_are_told_when_to_come_again_and_what_they_would_have_waited(server: HttpDoor) -> None:
    async with httpx.AsyncClient() as http:
        body = {"model": "org/tiny", "prompt": "fail at once"}
        full = await http.post(f"{server.url}/v1/completions", json=body)
        late = await http.post(f"{server.url}/v1/completions", json={**body, "prompt": "too long"})
    names = ("retry-after", "retry-after-ms", "x-should-retry")
    assert [full.headers.get(name) for name in names] == ["3", "2500", None]
    assert [late.headers.get(name) for name in names] == [None, None, "false"]
    assert late.json()["error"]["predicted_wait_ms"] == 1235


async def test_openais_client_does_not_repeat_what_would_be_refused_again(server: HttpDoor) -> None:
    server.source.forget()
    client = server.client().with_options(max_retries=2)
    with pytest.raises(openai.InternalServerError):
        await client.completions.create(model="org/tiny", prompt="too long")
    assert len(server.source.requests) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_answers_say_when_their_first_token_was_to_come(server: HttpDoor, *, stream: bool) -> None:
    async with httpx.AsyncClient() as http:
        told = []
        for prompt in ("predict", ["predict", "predict more", "hi"], "hi"):
            body = {"model": "org/tiny", "prompt": prompt, "stream": stream}
            answer = await http.post(f"{server.url}/v1/completions", json=body)
            assert answer.status_code == 200
            told.append(answer.headers.get("x-mooring-predicted-ttft-ms"))
    short, long = (len(TOKENIZER.encode(text).ids) for text in ("predict", "predict more"))
    assert told == [str(125 * short), str(125 * long), None], "of several prompts the one that waits longest"


async def test_what_the_framework_refuses_looks_the_same(server: HttpDoor) -> None:
    async with httpx.AsyncClient(base_url=server.url) as http:
        answers = [
            (await http.get("/nope"), 404, "unknown_url"),
            (await http.get("/v1/completions"), 405, "method_not_allowed"),
            (await http.post("/v1/completions", content="{"), 400, None),
            (await http.post("/v1/completions", json=[1]), 400, None),
            (await http.post("/v1/completions"), 400, None),
            (await http.post("/v1/completions", content="{}"), 400, None),
            (await http.post("/v1/completions", data={"a": "b"}), 415, "unsupported_media_type"),
        ]
    for result, status, code in answers:
        assert result.status_code == status, result.text
        assert result.json()["error"]["code"] == (code or "invalid_value")
        assert result.json()["error"]["type"] == "invalid_request_error"
        assert len(result.headers["x-request-id"]) == 32
    assert answers[1][0].headers["allow"] == "POST"


async def test_half_a_surrogate_pair_is_no_json(server: HttpDoor) -> None:
    headers = {"content-type": "application/json"}
    body = b'{"model": "org/tiny", "prompt": "\\ud800"}'
    async with httpx.AsyncClient() as http:
        result = await http.post(f"{server.url}/v1/completions", content=body, headers=headers)
    assert (result.status_code, result.json()["error"]["code"]) == (400, "invalid_value")


async def test_an_error_in_the_middle_of_a_stream_is_its_last_event(server: HttpDoor) -> None:
    stream = await server.client().completions.create(
        model="org/tiny", prompt="fail later", stream=True, max_tokens=16
    )
    seen: list[str] = []

    async def read() -> None:
        async for chunk in stream:
            seen.append(chunk.choices[0].text)  # noqa: PERF401 (what came before the error counts)

    with pytest.raises(openai.APIError, match="died twice") as caught:
        await read()
    assert "".join(seen) == TOKENIZER.decode(ANSWER_IDS[:3])
    assert caught.value.code == "worker_lost"
    await server.closed()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["hang", "crawl"])
async def test_a_client_that_goes_away_frees_what_it_held(
    server: HttpDoor, prompt: str, stream: bool
) -> None:
    body = {"model": "org/tiny", "prompt": prompt, "stream": stream, "max_tokens": 80}
    async with httpx.AsyncClient() as http:
        request = asyncio.create_task(http.post(f"{server.url}/v1/completions", json=body))
        await server.source.started(1)
        request.cancel()
        await asyncio.wait([request])
    await server.closed()


async def test_a_body_too_large_announced_or_counted(folder: Path) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b"x" * 1024

    headers = {"content-type": "application/json"}
    async with (
        open_door(folder, answer, config=RouterConfig(max_body_bytes=16_384)) as server,
        httpx.AsyncClient(base_url=server.url) as http,
    ):
        announced = await http.post("/v1/completions", content=b"x" * 300_000, headers=headers)
        counted = await http.post("/v1/completions", content=pieces(), headers=headers)
        good = await http.post("/v1/completions", json={"model": "org/tiny", "prompt": "hi"})
    for result in (announced, counted):
        assert result.status_code == 413
        assert result.json()["error"]["code"] == "request_too_large"
        assert "x-request-id" in result.headers
    assert good.status_code == 200


async def test_keys(folder: Path) -> None:
    async with open_door(folder, answer, authenticate=authenticate, allow_anonymous=False) as server:
        await server.client(api_key=KEY).completions.create(model="org/tiny", prompt="hi")
        assert server.source.requests[0].tenant == "acme"
        for call in (
            server.client(api_key=KEY[:-1] + "2").models.list(),
            # The key is looked at before the body is.
            server.client(api_key=KEY[:-1] + "2").completions.create(
                model="org/tiny", prompt="hi", temperature=9
            ),
        ):
            with pytest.raises(openai.AuthenticationError) as caught:
                await call
            assert caught.value.code == "invalid_api_key"
        async with httpx.AsyncClient() as http:
            assert (await http.get(f"{server.url}/v1/models")).status_code == 401
            assert (await http.get(f"{server.url}/health/live")).status_code == 200


async def test_health_metrics_and_the_openapi_page(folder: Path) -> None:
    async with open_door(folder, answer) as door, httpx.AsyncClient(base_url=door.url) as http:
        await door.client().completions.create(model="org/tiny", prompt="hi")
        assert (await http.get("/health/live")).json() == {"status": "live"}
        assert (await http.get("/health/ready")).json() == {"status": "ready"}
        metrics = await http.get("/metrics")
        page = (await http.get("/openapi.json")).json()
    assert metrics.headers["content-type"].startswith("text/plain")
    assert (
        'vllm:request_success_total{engine="0",finished_reason="stop",model_name="org/tiny",tenant="anonymous"} 1.0'
        in metrics.text
    )
    assert 'vllm:num_requests_running{engine="0",model_name="org/tiny"} 1.0' in metrics.text
    assert {"/v1/models", "/v1/completions", "/v1/chat/completions"} <= set(page["paths"])
    for path in ("/v1/completions", "/v1/chat/completions"):
        responses = page["paths"][path]["post"]["responses"]
        assert set(responses) == {"200", "4XX", "5XX"}
        assert set(responses["200"]["content"]) == {"application/json", "text/event-stream"}
