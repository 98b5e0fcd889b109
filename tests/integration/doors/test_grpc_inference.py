"""The native gRPC door over a real channel."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.kserve_doors import kserve_door
from support.router_doors import KEY, ScriptedSource, authenticate, served_model, write_model_folder
from support.scripted_answer import ANSWER, ANSWER_IDS, TOKENIZER, answer

from mooring.v1 import inference_pb2 as pb
from mooring.v1 import inference_pb2_grpc

pytestmark = pytest.mark.integration


@dataclass
class Server:
    stub: Any
    source: ScriptedSource

    async def generate(self, **fields: Any) -> list[Any]:
        request = pb.GenerateTextRequest(**{"model": "tiny", "max_tokens": 50, **fields})
        return [message async for message in self.stub.Generate(request, timeout=10)]


@contextlib.asynccontextmanager
async def running(folder: Path, **options: Any) -> AsyncIterator[Server]:
    models = [served_model("tiny", folder, max_model_len=96)]
    async with (
        kserve_door(answer, models, **options) as door,
        grpc.aio.insecure_channel(door.target) as channel,
    ):
        yield Server(inference_pb2_grpc.InferenceStub(channel), door.source)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("model"), TOKENIZER)


@pytest.fixture
async def server(folder: Path) -> AsyncIterator[Server]:
    async with running(folder) as started:
        yield started


def text_of(messages: list[Any], index: int = 0) -> str:
    return "".join(c.text for message in messages for c in message.choices if c.index == index)


async def test_tokens_texts_reasons_and_usage(server: Server) -> None:
    messages = await server.generate(prompt="hi", n=2, logprobs=2, request_id="mine", temperature=0.0)
    assert text_of(messages) == text_of(messages, 1) == ANSWER
    choices = [c for message in messages for c in message.choices if c.index == 0]
    tokens = [token for choice in choices for token in choice.tokens]
    assert [token.token_id for token in tokens] == ANSWER_IDS
    assert tokens[0].logprob == pytest.approx(-0.5)
    assert [top.token for top in tokens[0].top_logprobs] == [TOKENIZER.decode(ANSWER_IDS[:1]), "!"]
    assert [c.finish_reason for c in choices if c.finish_reason] == ["stop"]
    usage = messages[-1].usage
    num_prompt_tokens = len(server.source.requests[0].prompt_ids)
    assert (usage.prompt_tokens, usage.completion_tokens) == (num_prompt_tokens, 2 * len(ANSWER_IDS))
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert not any(message.HasField("usage") for message in messages[:-1])
    assert {message.request_id for message in messages} == {"mine"}
    assert server.source.requests[0].sampling.temperature == 0.0


async def test_token_ids_and_chat_are_prompts_too(server: Server) -> None:
    await server.generate(prompt_token_ids=pb.TokenIds(ids=ANSWER_IDS))
    chat = pb.ChatMessages(messages=[pb.ChatMessage(role="user", content="hi")])
    request = pb.GenerateTextRequest(model="tiny", chat=chat)
    async for _ in server.stub.Generate(request, timeout=10):
        pass
    by_ids, by_chat = server.source.requests
    assert by_ids.prompt_ids.tolist() == list(ANSWER_IDS)
    prompt = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert TOKENIZER.decode(list(by_chat.prompt_ids), skip_special_tokens=False) == prompt
    assert by_chat.sampling.max_tokens == 96 - len(by_chat.prompt_ids)


async def test_the_extras_reach_the_engine_by_the_same_options(server: Server) -> None:
    await server.generate(
        prompt="hello the", logit_bias={5: -100.0, 3: 1.5}, bad_words=["the"], truncate_prompt_tokens=2, stop=["o"],
        include_stop_str_in_output=True, skip_special_tokens=False, add_special_tokens=True,
    )  # fmt: skip
    [request] = server.source.requests
    assert request.sampling.logit_bias == ((3, 1.5), (5, -100.0))
    assert len(request.sampling.bad_words_ids) == 2
    assert len(request.prompt_ids) == 2
    assert (request.include_stop, request.skip_special_tokens) == (True, False)


async def test_prompt_logprobs_alone(server: Server) -> None:
    messages = await server.generate(prompt="hello the", prompt_logprobs=1, max_tokens=0, n=2)
    [request] = server.source.requests
    choices = [choice for message in messages for choice in message.choices]
    assert [choice.index for choice in choices if choice.prompt_tokens] == [0, 1]
    for choice in choices[:2]:
        assert [token.token_id for token in choice.prompt_tokens] == list(request.prompt_ids)
        assert not choice.prompt_tokens[0].HasField("logprob")
        assert [token.logprob for token in choice.prompt_tokens[1:]] == list(
            range(-1, -len(request.prompt_ids), -1)
        )
        assert [len(token.top_logprobs) for token in choice.prompt_tokens[1:]] == [1] * (
            len(request.prompt_ids) - 1
        )
    assert text_of(messages) == ""
    assert messages[-1].usage.completion_tokens == 0
    assert [c.finish_reason for m in messages for c in m.choices if c.finish_reason] == ["length"] * 2


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"model": "nope", "prompt": "hi"}, "NOT_FOUND", "model_not_found", "model"),
        ({"prompt": "hi", "top_p": 2.0}, "INVALID_ARGUMENT", "invalid_value", "top_p"),
        ({"prompt": "hi", "max_tokens": 99}, "INVALID_ARGUMENT", "context_length_exceeded", "max_tokens"),
        ({}, "INVALID_ARGUMENT", "invalid_value", "input"),
        (
            {"prompt_token_ids": pb.TokenIds(ids=[1 << 31])},
            *("INVALID_ARGUMENT", "invalid_value", "prompt_token_ids"),
        ),
        ({"chat": pb.ChatMessages()}, "INVALID_ARGUMENT", "invalid_value", "chat"),
        ({"prompt": "full"}, "UNAVAILABLE", "server_overloaded", None),
        ({"prompt": "fail later"}, "UNAVAILABLE", "worker_lost", None),
        ({"prompt": "bug"}, "INTERNAL", "internal_error", None),
    ],
)
async def test_errors_have_their_status_and_their_details(
    server: Server, fields: dict[str, Any], status: str, code: str, param: str | None
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await server.generate(**fields)
    assert caught.value.code() is grpc.StatusCode[status]
    assert caught.value.details()
    trailing = dict(caught.value.trailing_metadata())
    assert (trailing["error-code"], trailing.get("error-param")) == (code, param)
    assert trailing.get("retry-after") == ("3" if code == "server_overloaded" else None)
    async with asyncio.timeout(10):  # the client may hear of it first
        for stream in server.source.streams:
            await stream.closed.wait()


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("full", {"retry-after": "3", "retry-after-ms": "2500"}),
        ("too long", {"x-should-retry": "false", "predicted-wait-ms": "1235"}),
    ],
)
async def test_refusals_say_whether_and_when_to_come_again(
    server: Server, prompt: str, told: dict[str, str]
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await server.generate(prompt=prompt)
    names = {"retry-after", "retry-after-ms", "x-should-retry", "predicted-wait-ms"}
    trailing = dict(caught.value.trailing_metadata())
    assert {name: value for name, value in trailing.items() if name in names} == told


async def test_a_field_of_a_newer_protocol_is_refused(server: Server) -> None:
    known = pb.GenerateTextRequest(model="tiny", prompt="hi").SerializeToString()
    field_900 = bytes([0xA0, 0x38, 1])  # (900 << 3 | varint) and its value
    request = pb.GenerateTextRequest.FromString(known + field_900)
    with pytest.raises(grpc.aio.AioRpcError, match="900") as caught:
        async for _ in server.stub.Generate(request, timeout=10):
            pass
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_field_of_a_newer_protocol_is_refused_within_other_messages_too(server: Server) -> None:
    message = pb.ChatMessage(role="user", content="hi").SerializeToString() + bytes([0xA0, 0x38, 1])
    newer = pb.ChatMessage.FromString(message)
    with pytest.raises(grpc.aio.AioRpcError, match="900 of ChatMessage") as caught:
        await server.generate(chat=pb.ChatMessages(messages=[newer]))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert await server.generate(prompt="hi", logit_bias={5: 1.0})  # a map of plain values


async def test_what_was_predicted_is_in_the_initial_metadata(server: Server) -> None:
    told = []
    for prompt in ("predict", "hi", "full"):
        call = server.stub.Generate(pb.GenerateTextRequest(model="tiny", prompt=prompt), timeout=10)
        initial = dict(await call.initial_metadata())
        assert "x-request-id" in initial, "also of a refusal"
        told.append(initial.get("x-mooring-predicted-ttft-ms"))
        call.cancel()
    assert told == [str(125 * len(TOKENIZER.encode("predict").ids)), None, None]


async def test_request_ids_travel_in_metadata(server: Server) -> None:
    request = pb.GenerateTextRequest(model="tiny", prompt="hi")
    call = server.stub.Generate(request, metadata=(("x-request-id", "mine"),), timeout=10)
    assert dict(await call.initial_metadata())["x-request-id"] == "mine"
    assert (await call.read()).request_id == "mine"
    assert server.source.requests[0].request_id == "mine"


@pytest.mark.parametrize("how", ["cancel", "deadline"])
async def test_a_call_that_is_given_up_frees_what_it_held(server: Server, how: str) -> None:
    request = pb.GenerateTextRequest(model="tiny", prompt="hang")
    call = server.stub.Generate(request, timeout=60 if how == "cancel" else 1.5)
    await server.source.started(1)
    if how == "cancel":
        call.cancel()
    await asyncio.wait_for(server.source.streams[0].closed.wait(), 20)


async def test_models(server: Server) -> None:
    [model] = (await server.stub.ListModels(pb.ListModelsRequest(), timeout=10)).models
    assert (model.name, model.max_model_len) == ("tiny", 96)
    assert (model.residency, model.engine) == ("resident", "torch")


async def test_keys(folder: Path) -> None:
    async with running(folder, authenticate=authenticate, allow_anonymous=False) as server:
        for metadata in ((("authorization", f"Bearer {KEY}"),), (("x-api-key", KEY),)):
            request = pb.GenerateTextRequest(model="tiny", prompt="hi")
            async for _ in server.stub.Generate(request, metadata=metadata, timeout=10):
                pass
            assert server.source.requests[-1].tenant == "acme"
        for call in (
            server.stub.ListModels(pb.ListModelsRequest(), timeout=10),
            server.generate(prompt="hi"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
