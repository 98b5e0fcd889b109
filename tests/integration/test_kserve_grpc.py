"""The KServe v2 gRPC door, asked by Triton's own clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from support.kserve_doors import ADMIN_KEY, KServeDoor, kserve_door, tensor, text_inputs
from support.router_doors import (
    ScriptedStream,
    Tenant,
    byte_level_tokenizer,
    one_token_a_step,
    served_model,
    write_model_folder,
)
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from mooring.errors import OverloadedError, WorkerLostError
from router.request import GenerationRequest

pytestmark = pytest.mark.integration

TOKENIZER = byte_level_tokenizer()
END = TOKENIZER.token_to_id("<|im_end|>")
ANSWER = "hello 🦀!"
ANSWER_IDS = [*TOKENIZER.encode(ANSWER, add_special_tokens=False).ids, END]


def answer(request: GenerationRequest) -> ScriptedStream:
    text = TOKENIZER.decode(list(request.prompt_ids))
    steps = one_token_a_step(request, ANSWER_IDS, stop_token_id=END)
    if "full" in text:
        raise OverloadedError("The queue is full.", retry_after_s=2.5)
    if "fail later" in text:
        return ScriptedStream([*steps[:3], WorkerLostError("The worker died twice.")])
    if "bug" in text:
        raise ZeroDivisionError("a bug")
    return ScriptedStream(steps, pause_s=30 if "hang" in text else 0.02 if "slow" in text else 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("model"), TOKENIZER)


@contextlib.asynccontextmanager
async def running(folder: Path, **options: Any) -> AsyncIterator[tuple[KServeDoor, Any]]:
    models = [served_model("tiny", folder, max_model_len=96)]
    async with (
        kserve_door(answer, models, **options) as door,
        triton_aio.InferenceServerClient(door.target) as client,
    ):
        yield door, client


async def stream(
    client: Any, *requests: dict[str, Any], timeout: float = 10, **call: Any
) -> list[tuple[Any, Any]]:
    """Sends these at once, half-closes, and gives (result, error) of every response."""

    async def requests_of() -> AsyncIterator[dict[str, Any]]:
        for request in requests:
            yield {"model_name": "tiny", **request}

    return [pair async for pair in client.stream_infer(requests_of(), stream_timeout=timeout, **call)]


def texts(results: list[tuple[Any, Any]], request_id: str = "") -> list[str]:
    return [
        result.as_numpy("text_output")[0].decode()
        for result, error in results
        if error is None and result.get_response().id == request_id and result.get_response().outputs
    ]


def finals(results: list[tuple[Any, Any]]) -> list[bool]:
    return [result.get_response().parameters["triton_final_response"].bool_param for result, _ in results]


async def refused(awaitable: Any) -> InferenceServerException:
    with pytest.raises(InferenceServerException) as caught:
        await awaitable
    return caught.value


# Unary -----------------------------------------------------------------------------------------------


async def test_one_answer_is_the_whole_text_and_begins_with_the_prompt_unless_excluded(folder: Path) -> None:
    async with running(folder) as (door, client):
        result = await client.infer("tiny", text_inputs("say "), request_id="mine")
        assert result.as_numpy("text_output").tolist() == [f"say {ANSWER}".encode()]
        response = result.get_response()
        assert (response.id, response.model_name, response.model_version) == ("mine", "tiny", "1")
        without = [*text_inputs("say "), tensor("exclude_input_in_output", "BOOL", [True])]
        for algorithm in (None, "gzip", "deflate"):
            result = await client.infer("tiny", without, "1", compression_algorithm=algorithm)
            assert result.as_numpy("text_output").tolist() == [ANSWER.encode()]
        assert [request.request_id == "mine" for request in door.source.requests] == [
            True,
            False,
            False,
            False,
        ]
        assert all(stream.closed.is_set() for stream in door.source.streams)


async def test_inputs_reach_the_engine_as_tensors_parameters_and_json(folder: Path) -> None:
    wanted = {
        "temperature": 0.5, "top_p": 0.25, "top_k": 7, "repetition_penalty": 1.5, "presence_penalty": 1.0,
        "frequency_penalty": -1.0, "seed": 1 << 63, "max_tokens": 11, "min_tokens": 3,
    }  # fmt: skip
    names = {"seed": "random_seed", "min_tokens": "min_length"}
    kinds = {"seed": "UINT64", "max_tokens": "INT32", "min_tokens": "INT32", "top_k": "INT32"}
    text = tensor("text_input", "BYTES", ["hi"], [1, 1])
    stop = tensor("stop_words", "BYTES", ["x", "yz"], [1, 2])
    given = [
        tensor(names.get(name, name), kinds.get(name, "FP32"), [value]) for name, value in wanted.items()
    ]
    json_given = tensor("sampling_parameters", "BYTES", [json.dumps({**wanted, "stop": ["x", "yz"], "n": 1})])
    async with running(folder) as (door, client):
        await client.infer("tiny", [text, stop, *given])
        await client.infer("tiny", [text, json_given])
        parameters = {**wanted, "stop": "x", "seed": str(wanted["seed"]), "top_k": "7"}
        await client.infer("tiny", [text], parameters=parameters)
        for request in door.source.requests:
            sampling = request.sampling
            assert {name: getattr(sampling, name) for name in wanted} == wanted
        assert [request.stop for request in door.source.requests] == [("x", "yz"), ("x", "yz"), ("x",)]


async def test_outputs_are_those_asked_for_by_flag_or_by_name(folder: Path) -> None:
    flags = [
        tensor(f"return_{name}", "BOOL", [True])
        for name in ("finish_reason", "num_input_tokens", "num_output_tokens", "log_probs", "logprobs")
    ]
    n = tensor("num_return_sequences", "INT32", [2])
    async with running(folder) as (_, client):
        result = await client.infer("tiny", [*text_inputs("a"), *flags, n])
        num_tokens = len(ANSWER_IDS)
        assert result.as_numpy("finish_reason").tolist() == [b"stop", b"stop"]
        assert result.as_numpy("num_input_tokens").tolist() == [1]
        assert result.as_numpy("num_output_tokens").tolist() == [num_tokens] * 2
        assert result.as_numpy("cum_log_probs") == pytest.approx([-0.5 * num_tokens] * 2)
        assert result.as_numpy("output_log_probs").shape == (2, num_tokens)
        first = json.loads(result.as_numpy("logprobs")[0])[0][str(ANSWER_IDS[0])]
        assert (first["logprob"], first["decoded_token"]) == (-0.5, "he")

        wanted = [triton.InferRequestedOutput("finish_reason"), triton.InferRequestedOutput("text_output")]
        result = await client.infer("tiny", [*text_inputs("a"), *flags], outputs=wanted)
        assert [output.name for output in result.get_response().outputs] == ["finish_reason", "text_output"]


INVALID = {
    "no_such_input": [tensor("no_such_input", "INT32", [1])],
    "temperature": [tensor("temperature", "INT32", [1])],
    "top_k": [tensor("top_k", "INT32", [1, 2])],
    "seed": [tensor("seed", "UINT64", [1]), tensor("random_seed", "UINT64", [1])],
    "beam_width": [tensor("beam_width", "INT32", [2])],
    "prompt_embedding_table": [tensor("prompt_embedding_table", "FP32", [0.0])],
    "random_seed": [tensor("random_seed", "FP32", [1])],
    "min_length": [tensor("min_length", "INT32", [-1])],
    "sampling_parameters": [tensor("sampling_parameters", "BYTES", ["{"])],
    "guided_decoding_guide": [tensor("guided_decoding_guide", "BYTES", [""])],
}


@pytest.mark.parametrize("name", INVALID)
async def test_a_wrong_input_is_invalid_argument_and_named(folder: Path, name: str) -> None:
    async with running(folder) as (door, client):
        error = await refused(client.infer("tiny", [*text_inputs("a"), *INVALID[name]]))
        assert error.status() == "StatusCode.INVALID_ARGUMENT"
        assert name in error.message()
        [(result, stream_error)] = await stream(client, {"inputs": [*text_inputs("a"), *INVALID[name]]})
        assert result is None
        assert name in stream_error.message()
        assert door.source.requests == []


async def test_raw_and_typed_contents_are_both_taken_and_never_mixed(folder: Path) -> None:
    def request(**changes: Any) -> Any:
        made = pb.ModelInferRequest(model_name="tiny", **changes)
        text = made.inputs.add(name="text_input", datatype="BYTES", shape=[1])
        text.contents.bytes_contents.append(b"a")
        count = made.inputs.add(name="max_tokens", datatype="INT32", shape=[1])
        count.contents.int_contents.append(2)
        return made

    async with running(folder) as (door, _), grpc.aio.insecure_channel(door.target) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        response = await stub.ModelInfer(request())
        assert response.raw_output_contents == [b"\x05\x00\x00\x00ahell"]

        mixed = request(raw_input_contents=[b"\x01\x00\x00\x00a", b"\x02\x00\x00\x00"])
        too_few = request(raw_input_contents=[b"\x01\x00\x00\x00a"])
        in_wrong_field, without_data, classified, shared = request(), request(), request(), request()
        in_wrong_field.inputs[1].contents.int64_contents.append(2)
        without_data.inputs[1].ClearField("contents")
        classified.outputs.add(name="text_output").parameters["classification"].int64_param = 3
        shared.inputs[1].parameters["shared_memory_region"].string_param = "r"
        too_many = request()
        too_many.inputs[1].contents.int_contents.append(3)
        wrong = {
            "text_input": [mixed],
            "raw_input_contents": [too_few],
            "max_tokens": [in_wrong_field, without_data, too_many, shared],
            "text_output": [classified],
        }
        for name, requests in wrong.items():
            for each in requests:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.ModelInfer(each)
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
                assert name in caught.value.details()


async def test_what_is_wrong_is_told_by_the_status(folder: Path) -> None:
    parameter = {"parameters": {"no_such_parameter": 1}}
    unknown_output = {"outputs": [triton.InferRequestedOutput("no_such_output")]}
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"model_name": "other"}, "NOT_FOUND", "other"),
        ({"model_version": "2"}, "NOT_FOUND", "version 2"),
        ({"model_version": "one"}, "INVALID_ARGUMENT", "one"),
        (parameter, "INVALID_ARGUMENT", "no_such_parameter"),
        (unknown_output, "INVALID_ARGUMENT", "no_such_output"),
        ({"priority": 1}, "INVALID_ARGUMENT", "priority"),
        ({"sequence_id": 5}, "INVALID_ARGUMENT", "sequence_"),
        ({"inputs": []}, "INVALID_ARGUMENT", "text_input"),
        ({"inputs": text_inputs("full")}, "UNAVAILABLE", "queue is full"),
        ({"inputs": text_inputs("fail later")}, "UNAVAILABLE", "died twice"),
        ({"inputs": text_inputs("bug")}, "INTERNAL", "logged"),
        ({"inputs": text_inputs("hang"), "timeout": 50_000}, "DEADLINE_EXCEEDED", "timeout"),
        ({"inputs": text_inputs("hang"), "client_timeout": 0.1}, "DEADLINE_EXCEEDED", ""),
    ]
    async with running(folder) as (door, client):
        for arguments, status, words in cases:
            error = await refused(
                client.infer(**{"model_name": "tiny", "inputs": text_inputs("a"), **arguments})
            )
            assert error.status() == f"StatusCode.{status}", arguments
            assert words in error.message()
        async with asyncio.timeout(5):
            for opened in door.source.streams:
                await opened.closed.wait()
        [statistics] = (await client.get_inference_statistics("tiny")).model_stats
        assert statistics.inference_stats.fail.count == 4
        assert statistics.inference_stats.success.count == 0


async def test_a_field_of_a_newer_protocol_is_refused_in_every_message(folder: Path) -> None:
    newer = bytes([0xA0, 0x38, 1])  # (900 << 3 | varint) and its value
    parameter = pb.InferParameter.FromString(pb.InferParameter(int64_param=3).SerializeToString() + newer)
    tensor_of_it = pb.ModelInferRequest.InferInputTensor.FromString(newer)
    async with running(folder) as (door, _), grpc.aio.insecure_channel(door.target) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        calls: list[Any] = [
            stub.ModelInfer(pb.ModelInferRequest(model_name="tiny", inputs=[tensor_of_it])),
            stub.ModelInfer(pb.ModelInferRequest(model_name="tiny", parameters={"max_tokens": parameter})),
            stub.ModelConfig(pb.ModelConfigRequest.FromString(newer)),
        ]
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError, match="900 of ") as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


# Streams ---------------------------------------------------------------------------------------------


async def test_a_stream_has_an_answer_for_each_token_and_the_last_one_says_so(folder: Path) -> None:
    async with running(folder) as (_, client):
        results = await stream(client, {"inputs": text_inputs("a", stream=True), "request_id": "r"})
        assert len(results) == len(ANSWER_IDS)
        assert "".join(texts(results, "r")) == ANSWER
        assert finals(results) == [False] * (len(results) - 1) + [True]

        whole = await stream(client, {"inputs": text_inputs("a ")})
        assert texts(whole) == [f"a {ANSWER}"]
        assert finals(whole) == [True]


@pytest.mark.parametrize("as_stream", [True, False])
async def test_an_empty_final_answer_comes_where_it_was_asked_for(folder: Path, as_stream: bool) -> None:
    def ask(target: str) -> list[tuple[Any, Any]]:
        results: list[tuple[Any, Any]] = []
        with triton.InferenceServerClient(target) as client:
            client.start_stream(lambda result, error: results.append((result, error)), stream_timeout=10)
            inputs = text_inputs("a", stream=as_stream)
            client.async_stream_infer("tiny", inputs, request_id="r", enable_empty_final_response=True)
            client.stop_stream()
        return results

    async with running(folder) as (door, _):
        results = await asyncio.to_thread(ask, door.target)
    assert len(results) == (len(ANSWER_IDS) if as_stream else 1) + 1
    assert "".join(texts(results, "r")) == (ANSWER if as_stream else f"a{ANSWER}")
    assert finals(results) == [False] * (len(results) - 1) + [True]
    last = results[-1][0].get_response()
    assert (last.id, last.model_name, list(last.outputs)) == ("r", "tiny", [])


async def test_requests_of_a_stream_interleave_and_one_that_fails_leaves_the_others_alone(
    folder: Path,
) -> None:
    async with running(folder) as (door, client):
        results = await stream(
            client,
            {"inputs": text_inputs("slow", stream=True), "request_id": "1"},
            {"inputs": text_inputs("fail later", stream=True), "request_id": "bad"},
            {"inputs": text_inputs("slow", stream=True), "request_id": "2"},
            {"inputs": text_inputs("bug", stream=True), "request_id": "bug"},
            {"inputs": text_inputs("a"), "model_name": "none"},
        )
        errors = sorted(error.message() for _, error in results if error is not None)
        assert [words in error for words, error in zip(("logged", "'none'", "died"), errors, strict=True)]
        for request_id in "12":
            assert "".join(texts(results, request_id)) == ANSWER
        order = [result.get_response().id for result, error in results if error is None]
        assert order.index("2") < len(order) - 1 - order[::-1].index("1"), "they interleave"
        assert all(opened.closed.is_set() for opened in door.source.streams)


async def test_an_error_in_a_stream_names_its_request(folder: Path) -> None:
    async with running(folder) as (door, _), grpc.aio.insecure_channel(door.target) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = pb.ModelInferRequest(model_name="none", id="mine")
        responses = [each async for each in stub.ModelStreamInfer(iter([request]))]
        assert [each.infer_response.id for each in responses] == ["mine"]
        assert "none" in responses[0].error_message

        strict = stub.ModelStreamInfer(iter([request]), metadata=[("triton_grpc_error", "true")])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await anext(aiter(strict))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("way", ["cancel", "deadline", "unary", "own timeout"])
async def test_a_request_that_nobody_waits_for_frees_what_it_held(folder: Path, way: str) -> None:
    async with running(folder) as (door, client):
        given = {"model_name": "tiny", "inputs": text_inputs("hang", stream=True)}
        if way == "unary":
            task: asyncio.Task[Any] = asyncio.create_task(client.infer(**given))
        else:
            requests = [{**given, "timeout": 200_000}] if way == "own timeout" else [given, given]
            limit = 0.3 if way == "deadline" else 10
            task = asyncio.create_task(stream(client, *requests, timeout=limit))
        async with asyncio.timeout(5):
            while not door.source.streams:  # noqa: ASYNC110 - of a script that sets no event
                await asyncio.sleep(0.01)
            if way in ("cancel", "unary"):
                task.cancel()
            await asyncio.wait([task])
            for opened in door.source.streams:
                await opened.closed.wait()
        if way == "deadline":
            assert "StatusCode.DEADLINE_EXCEEDED" in str(task.exception())
        if way == "own timeout":
            [(_, error)] = task.result()
            assert "timeout" in error.message()


async def test_a_stream_stays_open_until_the_client_has_no_more_to_send(folder: Path) -> None:
    more = asyncio.Event()

    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": "tiny", "inputs": text_inputs("a"), "request_id": "first"}
        await more.wait()
        yield {"model_name": "tiny", "inputs": text_inputs("a"), "request_id": "second"}

    async with running(folder) as (_, client), asyncio.timeout(5):
        responses = aiter(client.stream_infer(requests()))
        assert (await anext(responses))[0].get_response().id == "first"
        more.set()
        assert [result.get_response().id async for result, _ in responses] == ["second"]


# Who may -----------------------------------------------------------------------------------------------


async def test_keys_are_those_of_the_other_doors(folder: Path) -> None:
    def authenticate(key: str) -> Tenant | None:
        return Tenant("acme") if key == "acme's" else None

    acme = {"authorization": "Bearer acme's"}
    async with running(folder, authenticate=authenticate, allow_anonymous=False) as (door, client):
        assert await client.is_server_live()
        assert await client.is_server_ready()
        for call in (
            client.get_server_metadata(),
            client.get_model_repository_index(),
            client.infer("tiny", text_inputs("a")),
            client.load_model("tiny"),
            client.load_model("tiny", headers=acme),
            client.unload_model("tiny", headers=acme),
        ):
            assert (await refused(call)).status() == "StatusCode.UNAUTHENTICATED"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream(client, {"inputs": text_inputs("a")})
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        await client.infer("tiny", text_inputs("a"), headers=acme)
        await stream(client, {"inputs": text_inputs("a")}, headers=acme)
        assert [request.tenant for request in door.source.requests] == ["acme", "acme"]
        admin = {"authorization": f"Bearer {ADMIN_KEY}"}
        await client.load_model("tiny", headers=admin)
        await client.unload_model("tiny", headers=admin)
        assert door.repository.calls == [("load", "tiny"), ("unload", "tiny")]
        assert (await refused(client.load_model("no", headers=admin))).status() == "StatusCode.NOT_FOUND"
        error = await refused(client.load_model("tiny", headers=admin, config="{}"))
        assert error.status() == "StatusCode.INVALID_ARGUMENT"
        assert "'config'" in error.message()


async def test_statistics_count_what_was_inferred(folder: Path) -> None:
    async with running(folder) as (_, client):
        before = (await client.get_inference_statistics()).model_stats
        assert [(each.name, each.version, each.last_inference) for each in before] == [("tiny", "1", 0)]
        for _ in range(3):
            await client.infer("tiny", text_inputs("slow"))
        [after] = (await client.get_inference_statistics("tiny", "1")).model_stats
        assert (after.inference_count, after.execution_count) == (3, 3)
        stats = after.inference_stats
        assert [stats.success.count, stats.queue.count, stats.compute_infer.count, stats.fail.count] == [
            3,
            3,
            3,
            0,
        ]
        assert stats.success.ns == stats.queue.ns + stats.compute_infer.ns
        assert stats.compute_infer.ns > 3 * len(ANSWER_IDS) * 0.02e9
        assert after.last_inference > 1_700_000_000_000
