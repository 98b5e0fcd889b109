"""The KServe v2 gRPC door, asked by Triton's own clients; its streams are in ``test_kserve_grpc_streams``."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import grpc
import pytest
import tritonclient.grpc as triton
from support.kserve_doors import ADMIN_KEY, tensor, text_inputs
from support.kserve_grpc_script import running_grpc, stream
from support.router_doors import KEY, authenticate, write_model_folder
from support.scripted_answer import ANSWER, ANSWER_IDS, TOKENIZER
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("model"), TOKENIZER)


async def refused(awaitable: Any) -> InferenceServerException:
    with pytest.raises(InferenceServerException) as caught:
        await awaitable
    return caught.value


# Unary -----------------------------------------------------------------------------------------------


async def test_one_answer_is_the_whole_text_and_begins_with_the_prompt_unless_excluded(folder: Path) -> None:
    async with running_grpc(folder) as (door, client):
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
    async with running_grpc(folder) as (door, client):
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
    async with running_grpc(folder) as (_, client):
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
    async with running_grpc(folder) as (door, client):
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

    async with running_grpc(folder) as (door, _), grpc.aio.insecure_channel(door.target) as channel:
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
    async with running_grpc(folder) as (door, client):
        for arguments, status, words in cases:
            error = await refused(
                client.infer(**{"model_name": "tiny", "inputs": text_inputs("a"), **arguments})
            )
            assert error.status() == f"StatusCode.{status}", arguments
            assert words in error.message()
        async with asyncio.timeout(20):
            for opened in door.source.streams:
                await opened.closed.wait()
        [statistics] = (await client.get_inference_statistics("tiny")).model_stats
        assert statistics.inference_stats.fail.count == 4
        assert statistics.inference_stats.success.count == 0


async def test_a_field_of_a_newer_protocol_is_refused_in_every_message(folder: Path) -> None:
    newer = bytes([0xA0, 0x38, 1])  # (900 << 3 | varint) and its value
    parameter = pb.InferParameter.FromString(pb.InferParameter(int64_param=3).SerializeToString() + newer)
    tensor_of_it = pb.ModelInferRequest.InferInputTensor.FromString(newer)
    async with running_grpc(folder) as (door, _), grpc.aio.insecure_channel(door.target) as channel:
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


# Who may -----------------------------------------------------------------------------------------------


async def test_keys_are_those_of_the_other_doors(folder: Path) -> None:
    acme = {"authorization": f"Bearer {KEY}"}
    async with running_grpc(folder, authenticate=authenticate, allow_anonymous=False) as (door, client):
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
    async with running_grpc(folder) as (_, client):
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
