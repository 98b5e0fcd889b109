"""What vLLM's clients and evaluation harnesses ask for beyond plain generation, over real HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from support.http_door import HttpDoor, open_door
from support.router_doors import (
    ScriptedStream,
    authenticate,
    byte_level_tokenizer,
    made_up_prompt_logprobs,
    one_token_a_step,
    write_model_folder,
)

from mooring.errors import OverloadedError
from router.request.bounds import RouterConfig
from router.request.request import GenerationRequest

# One door, and one event loop, for all tests that leave it as it was: to shut one takes longer than most of them.
pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

TOKENIZER = byte_level_tokenizer()
END = TOKENIZER.token_to_id("<|im_end|>")


def ids_of(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False).ids


def text_of(token_ids: Any) -> str:
    return str(TOKENIZER.decode(list(token_ids), skip_special_tokens=False))


ANSWER_IDS = [*ids_of(" there 🦀!"), END]


def answer(request: GenerationRequest) -> ScriptedStream:
    """Says the answer; what the prompt names comes late, fails or never ends."""
    text = text_of(request.prompt_ids)
    steps = one_token_a_step(request, ANSWER_IDS, stop_token_id=END)
    if "fail" in text:
        return ScriptedStream([*steps[:2], OverloadedError("The queue is full.")])
    if "refuse" in text:
        raise OverloadedError("The queue is full.")
    return ScriptedStream(steps, pause_s=30 if "hang" in text else 0.01 if "slow" in text else 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("model"), TOKENIZER)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_door(folder: Path) -> AsyncIterator[HttpDoor]:
    async with open_door(folder, answer) as opened:
        yield opened


@pytest.fixture
def door(shared_door: HttpDoor) -> HttpDoor:
    shared_door.source.forget()
    return shared_door


async def post(door: HttpDoor, path: str, **fields: Any) -> httpx.Response:
    async with httpx.AsyncClient(timeout=20) as http:
        return await http.post(door.url + path, json={"model": "org/tiny", **fields})


async def complete(door: HttpDoor, **fields: Any) -> Any:
    result = await post(door, "/v1/completions", **fields)
    assert result.status_code == 200, result.text
    return result.json()


async def stream(door: HttpDoor, **fields: Any) -> list[Any]:
    result = await post(door, "/v1/completions", stream=True, **fields)
    events = [line.removeprefix("data: ") for line in result.text.split("\n\n") if line]
    assert events.pop() == "[DONE]"
    return [json.loads(event) for event in events]


# Echo -------------------------------------------------------------------------------------------------


async def test_an_evaluation_harness_scores_an_echoed_choice(door: HttpDoor) -> None:
    """As lm-eval's local-completions does: token ids in, the prompt's log-probabilities out, the last token
    dropped."""
    context, choice = ids_of("the hello"), ids_of(" there")
    body = await complete(door, prompt=[context + choice], echo=True, logprobs=1, max_tokens=1, temperature=0)
    [scored] = body["choices"]
    logprobs = scored["logprobs"]
    prompt_ids = context + choice
    own = list(range(-1, -len(prompt_ids), -1))
    assert logprobs["token_logprobs"] == [None, *own, -0.5]
    assert logprobs["top_logprobs"][0] is None
    for place, (own_logprob, top) in enumerate(
        zip(own, logprobs["top_logprobs"][1:-1], strict=True), start=1
    ):
        assert (own_logprob == max(top.values())) is (place % 2 == 0)
    assert "".join(logprobs["tokens"]) == scored["text"] == text_of([*prompt_ids, ANSWER_IDS[0]])
    pieces = [text_of([each]) for each in prompt_ids]
    starts = [len("".join(pieces[:place])) for place in range(len(pieces) + 1)]
    assert logprobs["text_offset"] == starts
    assert body["usage"] == {
        "prompt_tokens": len(prompt_ids),
        "completion_tokens": 1,
        "total_tokens": len(prompt_ids) + 1,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


@pytest.mark.parametrize("n", [1, 2])
async def test_no_tokens_but_the_prompt(door: HttpDoor, n: int) -> None:
    body = await complete(door, prompt="the hello", echo=True, logprobs=2, max_tokens=0, n=n)
    assert [choice["text"] for choice in body["choices"]] == ["the hello"] * n
    assert [choice["finish_reason"] for choice in body["choices"]] == ["length"] * n
    for choice in body["choices"]:
        assert len(choice["logprobs"]["tokens"]) == len(ids_of("the hello"))
    assert body["usage"]["completion_tokens"] == 0
    assert door.source.requests[0].sampling.max_tokens == 1
    plain = await complete(door, prompt="the hello", echo=True, max_tokens=0)
    assert (plain["choices"][0]["text"], plain["choices"][0]["logprobs"]) == ("the hello", None)
    refused = await post(door, "/v1/completions", prompt="the hello", max_tokens=0)
    assert refused.json()["error"]["param"] == "max_tokens"


@pytest.mark.parametrize("logprobs", [None, 1])
async def test_a_stream_begins_with_the_echo_and_says_the_same(door: HttpDoor, logprobs: int | None) -> None:
    fields = {"prompt": "hello", "echo": True, "logprobs": logprobs, "n": 2, "max_tokens": 20}
    whole = await complete(door, **fields)
    chunks = await stream(door, **fields)
    for index, choice in enumerate(whole["choices"]):
        parts = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert parts[0]["text"] == "hello"
        assert "".join(part["text"] for part in parts) == choice["text"] == "hello there 🦀!"
        if logprobs is not None:
            for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
                joined = [entry for part in parts for entry in part["logprobs"][name]]
                assert joined == choice["logprobs"][name]


async def test_a_prompt_that_was_a_text_is_echoed_as_it_was_sent(door: HttpDoor) -> None:
    prompt = "<|im_start|>user"  # its first token is special, and no text where it is read back
    body = await complete(door, prompt=prompt, echo=True, logprobs=0, max_tokens=1)
    assert body["choices"][0]["text"] == prompt + text_of(ANSWER_IDS[:1])
    assert body["choices"][0]["logprobs"]["tokens"][0] == "<|im_start|>"
    assert body["choices"][0]["logprobs"]["text_offset"][-1] == len(prompt)


# The prompt's log-probabilities in vLLM's form ----------------------------------------------------------


async def test_prompt_logprobs_of_completions_and_chat(door: HttpDoor) -> None:
    body = await complete(door, prompt="hello the", prompt_logprobs=1, max_tokens=2)
    request = door.source.requests[0]
    first, *rest = body["choices"][0]["prompt_logprobs"]
    assert first is None
    for token_id, entry, top in zip(
        request.prompt_ids[1:], rest, made_up_prompt_logprobs(request), strict=True
    ):
        own = entry[str(token_id)]
        assert own["logprob"] == top.logprob
        assert own["decoded_token"] == text_of([token_id])
        assert own["rank"] == (1 if token_id == top.token_ids[0] else None)
        assert entry[str(top.token_ids[0])]["rank"] == 1
    assert body["choices"][0]["text"] == text_of(ANSWER_IDS[:2])
    chat = await post(
        door, "/v1/chat/completions", messages=[{"role": "user", "content": "hi"}], prompt_logprobs=0
    )
    assert len(chat.json()["prompt_logprobs"]) == len(door.source.requests[1].prompt_ids)
    streamed = await post(door, "/v1/completions", prompt="hi", prompt_logprobs=1, stream=True)
    assert streamed.json()["error"]["param"] == "prompt_logprobs"


# Several prompts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompts", [["a", "slow b", "the"], [[1, 2], [3], [4, 5, 6]]])
async def test_choices_are_numbered_prompt_by_prompt(door: HttpDoor, prompts: list[Any]) -> None:
    body = await complete(door, prompt=prompts, n=2, echo=True, max_tokens=3, seed=1)
    assert [choice["index"] for choice in body["choices"]] == list(range(6))
    shown = [each if isinstance(each, str) else text_of(each) for each in prompts for _ in range(2)]
    assert [choice["text"] for choice in body["choices"]] == [
        each + text_of(ANSWER_IDS[:3]) for each in shown
    ]
    num_prompt_tokens = sum(len(request.prompt_ids) for request in door.source.requests)
    assert body["usage"]["prompt_tokens"] == num_prompt_tokens
    assert body["usage"]["completion_tokens"] == 2 * 3 * 3
    assert len(door.source.requests) == 3
    await door.closed()


async def test_prompts_run_side_by_side_and_stream_interleaved(door: HttpDoor) -> None:
    chunks = await stream(
        door, prompt=["slow a", "slow b"], max_tokens=4, stream_options={"include_usage": True}
    )
    order = [choice["index"] for chunk in chunks for choice in chunk["choices"]]
    assert sorted(order) == [0] * 4 + [1] * 4
    assert order.index(1) < len(order) - 1 - order[::-1].index(0)
    assert chunks[-1]["usage"]["completion_tokens"] == 8


async def test_one_that_fails_frees_the_others(door: HttpDoor) -> None:
    result = await post(door, "/v1/completions", prompt=["hang", "fail"], max_tokens=9)
    assert (result.status_code, result.json()["error"]["code"]) == (503, "server_overloaded")
    result = await post(door, "/v1/completions", prompt=["hang", "refuse"], max_tokens=9)
    assert (result.status_code, result.json()["error"]["code"]) == (503, "server_overloaded")
    await door.closed()


async def test_a_client_that_goes_away_frees_all_prompts(door: HttpDoor) -> None:
    body = {"model": "org/tiny", "prompt": ["hang", "slow a", "hang"], "stream": True, "max_tokens": 9}
    async with httpx.AsyncClient() as http:
        request = asyncio.create_task(http.post(f"{door.url}/v1/completions", json=body))
        await door.source.started(3)
        request.cancel()
        await asyncio.wait([request])
    await door.closed()


async def test_what_is_wrong_with_one_prompt_or_with_their_number(folder: Path) -> None:
    async with open_door(folder, answer, config=RouterConfig(max_batch_choices=4)) as door:
        for prompts, n in ((["a"] * 5, 1), (["a"] * 3, 2), (["a", ""], 1), ([[1], [1 << 20]], 1)):
            result = await post(door, "/v1/completions", prompt=prompts, n=n)
            assert (result.status_code, result.json()["error"]["param"]) == (400, "prompt")
        assert not door.source.requests


async def test_a_tenant_with_too_many_requests_in_flight_is_told_which_limit_that_is(folder: Path) -> None:
    async with open_door(folder, answer, config=RouterConfig(max_tenant_requests=1)) as door:
        body = {"model": "org/tiny", "prompt": "hang", "max_tokens": 9}
        async with httpx.AsyncClient() as http:
            running = asyncio.create_task(http.post(f"{door.url}/v1/completions", json=body))
            await door.source.started(1)
            refused = await post(door, "/v1/completions", prompt="a")
            assert refused.status_code == 429
            assert refused.json()["error"]["code"] == "tenant_requests_in_flight"
            assert "max_tenant_requests" in refused.json()["error"]["message"]
            assert refused.headers["retry-after"] == "1"
            running.cancel()
            await asyncio.wait([running])
        await door.closed()
        assert (await post(door, "/v1/completions", prompt="a")).status_code == 200


# Sampling -----------------------------------------------------------------------------------------------


async def test_what_reaches_the_engine(door: HttpDoor) -> None:
    await complete(
        door, prompt="hello the", logit_bias={"5": -100, "3": 1.5}, bad_words=["the"], max_tokens=2,
        truncate_prompt_tokens=2, best_of=1, add_special_tokens=False,
    )  # fmt: skip
    [request] = door.source.requests
    assert request.sampling.logit_bias == ((3, 1.5), (5, -100.0))
    assert set(request.sampling.bad_words_ids) == {tuple(ids_of("the")), tuple(ids_of(" the"))}
    assert list(request.prompt_ids) == ids_of("hello the")[-2:]


async def test_metadata_stays_with_the_request(door: HttpDoor) -> None:
    messages = [{"role": "user", "content": "hi"}]
    noted = {"job": "nightly", "étage": "3"}
    assert (await post(door, "/v1/chat/completions", messages=messages, metadata=noted)).status_code == 200
    assert (await post(door, "/v1/chat/completions", messages=messages)).status_code == 200
    assert [dict(request.metadata) for request in door.source.requests] == [noted, {}]
    too_many = {str(number): "" for number in range(17)}
    refused = await post(door, "/v1/chat/completions", messages=messages, metadata=too_many)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", "metadata")
    assert "at most 16" in error["message"]
    refused = await post(door, "/v1/completions", prompt="hi", metadata=noted)
    assert refused.json()["error"]["param"] == "metadata", "it is a field of chat"


@pytest.mark.parametrize(
    ("fields", "finish_reason", "stop_reason"),
    [
        ({"stop": ["zzz", "re "]}, "stop", "re "),
        ({"stop_token_ids": [END]}, "stop", END),
        ({"stop": "!", "stop_token_ids": [END]}, "stop", "!"),
        ({}, "stop", None),
        ({"max_tokens": 1, "stop": "zzz"}, "length", None),
    ],
)
async def test_what_ended_a_choice(
    door: HttpDoor, fields: dict[str, Any], finish_reason: str, stop_reason: str | int | None
) -> None:
    fields = {"prompt": "hi", "max_tokens": 50, "n": 2, **fields}
    for choice in (await complete(door, **fields))["choices"]:
        assert (choice["finish_reason"], choice["stop_reason"]) == (finish_reason, stop_reason)
    parts = [choice for chunk in await stream(door, **fields) for choice in chunk["choices"]]
    last = [part for part in parts if part["finish_reason"]]
    assert [part["stop_reason"] for part in last] == [stop_reason] * 2
    assert not any("stop_reason" in part for part in parts if part not in last)


async def test_a_top_p_of_0_is_the_likeliest_token_alone(door: HttpDoor) -> None:
    await complete(door, prompt="hi", top_p=0, max_tokens=1)
    sampling = door.source.requests[0].sampling
    assert (sampling.top_p, sampling.top_k) == (1.0, 1)


async def test_a_cut_prompt_leaves_room_for_the_output(door: HttpDoor) -> None:
    ids = [1] * 200
    body = await complete(door, prompt=ids, truncate_prompt_tokens=-1, max_tokens=6, echo=True)
    assert len(door.source.requests[0].prompt_ids) == 90
    assert body["choices"][0]["text"].startswith(text_of(ids[:90]))
    for wrong in (0, -2):
        result = await post(door, "/v1/completions", prompt=ids, truncate_prompt_tokens=wrong)
        assert result.json()["error"]["param"] == "truncate_prompt_tokens"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, " there 🦀!"),
        ({"skip_special_tokens": False}, " there 🦀!"),
        ({"include_stop_str_in_output": True}, " there 🦀!"),
        ({"skip_special_tokens": False, "include_stop_str_in_output": True}, " there 🦀!<|im_end|>"),
        ({"stop": "re "}, " the"),
        ({"stop": "re ", "include_stop_str_in_output": True}, " there "),
    ],
)
async def test_what_of_the_end_is_text(door: HttpDoor, fields: dict[str, Any], text: str) -> None:
    body = await complete(door, prompt="hi", max_tokens=50, **fields)
    assert (body["choices"][0]["text"], body["choices"][0]["finish_reason"]) == (text, "stop")
    chunks = await stream(door, prompt="hi", max_tokens=50, **fields)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logit_bias", {"x": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"1": 100.5}),
        ("logit_bias", {str(i): 1 for i in range(1025)}),
        ("logit_bias", {"99999": 1}),
        ("bad_words", [""]),
        ("bad_words", ["a"] * 257),
        ("prompt_logprobs", -1),
        ("prompt_logprobs", 21),
        ("best_of", 2),
    ],
)
async def test_wrong_values_are_refused_by_name(door: HttpDoor, field: str, value: Any) -> None:
    result = await post(door, "/v1/completions", prompt="hi", **{field: value})
    assert (result.status_code, result.json()["error"]["param"]) == (400, field)
    assert not door.source.requests


# The form of the answer ---------------------------------------------------------------------------------


async def test_tokens_as_ids_and_the_usage_so_far(door: HttpDoor) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = await stream(
        door, prompt="hi", logprobs=1, return_tokens_as_token_ids=True, max_tokens=3, stream_options=options
    )
    tokens = [token for chunk in chunks[:-1] for token in chunk["choices"][0]["logprobs"]["tokens"]]
    assert tokens == [f"token_id:{token_id}" for token_id in ANSWER_IDS[:3]]
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 2, 3, 3]
    chat = await post(
        door, "/v1/chat/completions", messages=[{"role": "user", "content": "hi"}],
        logprobs=True, top_logprobs=1, return_tokens_as_token_ids=True, max_tokens=1,
    )  # fmt: skip
    [entry] = chat.json()["choices"][0]["logprobs"]["content"]
    assert entry["token"] == entry["top_logprobs"][0]["token"] == f"token_id:{ANSWER_IDS[0]}"
    assert bytes(entry["bytes"]).decode() == text_of(ANSWER_IDS[:1])


async def test_the_template_as_the_caller_wants_it(door: HttpDoor) -> None:
    async def prompt_of(**fields: Any) -> str:
        result = await post(door, "/v1/chat/completions", max_tokens=1, **fields)
        assert result.status_code == 200, result.text
        return text_of(door.source.requests[-1].prompt_ids)

    asked = [{"role": "user", "content": "hi"}]
    opened = [*asked, {"role": "assistant", "content": "well, "}]
    user = "<|im_start|>user\nhi<|im_end|>\n"
    assert await prompt_of(messages=asked) == user + "<|im_start|>assistant\n"
    assert await prompt_of(messages=asked, add_generation_prompt=False) == user
    continued = await prompt_of(messages=opened, continue_final_message=True)
    assert continued == user + "<|im_start|>assistant\nwell, "
    both = await post(
        door, "/v1/chat/completions", messages=opened, continue_final_message=True, add_generation_prompt=True
    )
    assert both.json()["error"]["param"] == "continue_final_message"


# Tokens without a generation ----------------------------------------------------------------------------


async def test_tokenize_and_back(door: HttpDoor) -> None:
    made = (await post(door, "/tokenize", prompt="<|im_start|>é the", return_token_strs=True)).json()
    assert made["tokens"] == ids_of("<|im_start|>é the")
    assert (made["count"], made["max_model_len"]) == (len(made["tokens"]), 96)
    assert [*made["token_strs"][:1], made["token_strs"][-1]] == ["<|im_start|>", "Ġthe"]
    assert (await post(door, "/tokenize", prompt="the")).json()["token_strs"] is None
    back = await post(door, "/detokenize", tokens=made["tokens"])
    assert back.json() == {"prompt": "<|im_start|>é the"}
    messages = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    chat = (await post(door, "/tokenize", messages=messages, add_generation_prompt=False)).json()
    assert text_of(chat["tokens"]) == "<|im_start|>user\nhi<|im_end|>\n"
    same = await post(door, "/tokenize", prompt="the", tools=None, chat_template=None, mm_processor_kwargs={})
    assert same.json()["tokens"] == ids_of("the")
    assert not door.source.requests


async def test_what_tokenize_refuses(door: HttpDoor) -> None:
    for path, fields, param in (
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "hi"}]}, "prompt"),
        ("/tokenize", {"prompt": "a", "tools": [{}]}, "tools"),
        ("/tokenize", {"model": "nope", "prompt": "a"}, "model"),
        ("/detokenize", {"tokens": [1 << 20]}, "tokens"),
        ("/detokenize", {}, "tokens"),
    ):
        assert (await post(door, path, **fields)).json()["error"]["param"] == param


async def test_tokenize_is_behind_the_key(folder: Path) -> None:
    async with open_door(folder, answer, authenticate=authenticate, allow_anonymous=False) as door:
        for path in ("/tokenize", "/detokenize"):
            assert (await post(door, path, prompt="a")).status_code == 401
