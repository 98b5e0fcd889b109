"""Streams of the KServe v2 gRPC door: interleaved, cut short, cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import tritonclient.grpc as triton
from support.kserve_doors import text_inputs
from support.kserve_grpc_script import running_grpc, stream
from support.router_doors import KEY, known_tenant, write_model_folder
from support.scripted_answer import ANSWER, ANSWER_IDS, TOKENIZER
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from model_registry.records import TenantRecord
from model_registry.tenants import hash_key
from router.request.bounds import RouterConfig

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("model"), TOKENIZER)


def texts(results: list[tuple[Any, Any]], request_id: str = "") -> list[str]:
    return [
        result.as_numpy("text_output")[0].decode()
        for result, error in results
        if error is None and result.get_response().id == request_id and result.get_response().outputs
    ]


def finals(results: list[tuple[Any, Any]]) -> list[bool]:
    return [result.get_response().parameters["triton_final_response"].bool_param for result, _ in results]


async def test_a_stream_has_an_answer_for_each_token_and_the_last_one_says_so(folder: Path) -> None:
    async with running_grpc(folder) as (_, client):
        results = await stream(client, {"inputs": text_inputs("a", stream=True), "request_id": "r"})
        assert len(results) == len(ANSWER_IDS)
        assert "".join(texts(results, "r")) == ANSWER
        assert finals(results) == [False] * (len(results) - 1) + [True]

        whole = await stream(client, {"inputs": text_inputs("a ")})
        assert texts(whole) == [f"a {ANSWER}"]
        assert finals(whole) == [True]


async def test_answers_say_when_their_first_token_was_to_come(folder: Path) -> None:
    expected = 125 * len(TOKENIZER.encode("predict").ids)
    async with running_grpc(folder) as (door, client):
        for text, told in (("predict", expected), ("hi", None)):
            for result, _ in await stream(client, {"inputs": text_inputs(text, stream=True)}):
                parameters = result.get_response().parameters
                assert ("predicted_ttft_ms" in parameters) is (told is not None)
                assert told is None or parameters["predicted_ttft_ms"].int64_param == told
        async with grpc.aio.insecure_channel(door.target) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            parameters = {"text_input": pb.InferParameter(string_param="predict")}
            call = stub.ModelInfer(pb.ModelInferRequest(model_name="tiny", parameters=parameters), timeout=10)
            assert dict(await call.initial_metadata())["x-mooring-predicted-ttft-ms"] == str(expected)


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

    async with running_grpc(folder) as (door, _):
        results = await asyncio.to_thread(ask, door.target)
    assert len(results) == (len(ANSWER_IDS) if as_stream else 1) + 1
    assert "".join(texts(results, "r")) == (ANSWER if as_stream else f"a{ANSWER}")
    assert finals(results) == [False] * (len(results) - 1) + [True]
    last = results[-1][0].get_response()
    assert (last.id, last.model_name, list(last.outputs)) == ("r", "tiny", [])


async def test_requests_of_a_stream_interleave_and_one_that_fails_leaves_the_others_alone(
    folder: Path,
) -> None:
    async with running_grpc(folder) as (door, client):
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


async def test_the_key_is_looked_at_for_each_request_of_a_stream(folder: Path) -> None:
    def authenticate(key_hash: str) -> TenantRecord | None:
        return known_tenant("acme") if key_hash in good else None

    good = {hash_key(KEY)}
    config = RouterConfig(key_cache_s=0, unknown_key_cache_s=0)
    options = {"authenticate": authenticate, "allow_anonymous": False, "config": config}
    async with (
        running_grpc(folder, **options) as (door, _),
        grpc.aio.insecure_channel(door.target) as channel,
    ):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        call = stub.ModelStreamInfer(metadata=[("authorization", f"Bearer {KEY}")])
        request = pb.ModelInferRequest(model_name="none", id="mine")
        await call.write(request)
        assert "none" in (await call.read()).error_message
        good.clear()
        await call.write(request)
        refused = await call.read()
        assert (refused.infer_response.id, "API key" in refused.error_message) == ("mine", True)
        await call.done_writing()


async def test_an_error_in_a_stream_names_its_request(folder: Path) -> None:
    async with running_grpc(folder) as (door, _), grpc.aio.insecure_channel(door.target) as channel:
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
    async with running_grpc(folder) as (door, client):
        given = {"model_name": "tiny", "inputs": text_inputs("hang", stream=True)}
        if way == "unary":
            task: asyncio.Task[Any] = asyncio.create_task(client.infer(**given))
        else:
            requests = [{**given, "timeout": 1_500_000}] if way == "own timeout" else [given, given]
            limit = 1.5 if way == "deadline" else 60  # of which connecting takes some
            task = asyncio.create_task(stream(client, *requests, timeout=limit))
        async with asyncio.timeout(20):
            await door.source.started(1)
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

    async with running_grpc(folder) as (_, client), asyncio.timeout(20):
        responses = aiter(client.stream_infer(requests()))
        assert (await anext(responses))[0].get_response().id == "first"
        more.set()
        assert [result.get_response().id async for result, _ in responses] == ["second"]
