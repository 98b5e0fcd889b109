"""The KServe v2 REST door on a real port: bodies as clients send them, and Triton's own client for the tensors."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio
import tritonclient.http.aio as triton
from support.kserve_doors import ADMIN_KEY, MemoryRepository
from support.router_doors import (
    ScriptedSource,
    ScriptedStream,
    Tenant,
    byte_level_tokenizer,
    one_token_a_step,
    served_model,
    services,
    write_model_folder,
)
from tritonclient.utils import InferenceServerException

from mooring.doors import http_door
from mooring.errors import ModelUnavailableError, OverloadedError, WorkerLostError
from mooring.http_connection import HttpLimits
from router.config import RouterConfig
from router.http_app import create_app
from router.intake import Intake
from router.kserve.core import KServe
from router.kserve.repository import IndexEntry
from router.kserve.rest import create_kserve_routes
from router.request import GenerationRequest

# One server, and one event loop, for all tests: to start one takes longer than most of them.
pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

TOKENIZER = byte_level_tokenizer()
END = TOKENIZER.token_to_id("<|im_end|>")
ANSWER = "hello there 🦀!"
ANSWER_IDS = [*TOKENIZER.encode(ANSWER, add_special_tokens=False).ids, END]
INFER = "/v2/models/org/tiny/infer"
GENERATE = "/v2/models/org/tiny/generate"
STREAM = "/v2/models/org/tiny/generate_stream"


def answer(request: GenerationRequest) -> ScriptedStream:
    """Says the answer, or plays out what the prompt asks for."""
    text = TOKENIZER.decode(list(request.prompt_ids))
    steps = one_token_a_step(request, ANSWER_IDS, stop_token_id=END)
    if "fail later" in text:
        return ScriptedStream([*steps[:3], WorkerLostError("The worker died twice under it.")])
    if "fail at once" in text:
        return ScriptedStream([OverloadedError("The queue is full.", retry_after_s=2.5)])
    if "hang" in text:
        return ScriptedStream([steps[0], *steps[1:]], pause_s=30)
    if "refuse" in text:
        raise ModelUnavailableError("The model is disabled.")
    if "bug" in text:
        raise ZeroDivisionError("a bug")
    return ScriptedStream(steps)


@dataclass
class Server:
    url: str
    source: ScriptedSource
    repository: MemoryRepository

    def forget(self) -> None:
        """What earlier tests did."""
        self.source.requests.clear()
        self.source.streams.clear()
        self.repository.calls.clear()

    def http(self, **options: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, timeout=10, **options)

    def triton(self) -> triton.InferenceServerClient:
        return triton.InferenceServerClient(self.url.removeprefix("http://"))


@contextlib.asynccontextmanager
async def running(folder: Path, **options: Any) -> AsyncIterator[Server]:
    source = ScriptedSource(answer)
    repository = MemoryRepository(
        [IndexEntry("org/tiny", "1", "READY"), IndexEntry("off", "3", "UNAVAILABLE", "disabled")]
    )
    given = services(source, [served_model("org/tiny", folder, max_model_len=96)], **options)
    intake = Intake(given)
    app = create_app(given, intake)
    max_body_bytes = given.config.max_body_bytes
    kserve = KServe(given, intake, repository)
    app.router.routes.extend(
        create_kserve_routes(kserve, given.tenancy, ADMIN_KEY, max_body_bytes=max_body_bytes)
    )
    async with http_door(app, "127.0.0.1", 0, HttpLimits(max_frame_bytes=max_body_bytes)) as url:
        yield Server(url, source, repository)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("model"), TOKENIZER)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_server(folder: Path) -> AsyncIterator[Server]:
    async with running(folder) as started:
        yield started


@pytest.fixture
def server(shared_server: Server) -> Server:
    shared_server.forget()
    return shared_server


def text_input(text: str = "hi", *, binary: bool = True) -> triton.InferInput:
    tensor = triton.InferInput("text_input", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([text.encode()], dtype=np.object_), binary_data=binary)
    return tensor


def tensor(name: str, values: list[Any], dtype: Any, datatype: str, *, binary: bool = True) -> Any:
    made = triton.InferInput(name, [len(values)], datatype)
    made.set_data_from_numpy(np.array(values, dtype=dtype), binary_data=binary)
    return made


def json_call(text: str = "hi", **parameters: Any) -> dict[str, Any]:
    inputs = [{"name": "text_input", "datatype": "BYTES", "shape": [1], "data": [text]}]
    return {"inputs": inputs, "parameters": parameters}


# Inference --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("response_compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
async def test_infer_with_tritons_client(
    server: Server, binary: bool, request_compression: str | None, response_compression: str | None
) -> None:
    inputs = [
        text_input(binary=binary),
        tensor("max_tokens", [50], np.int32, "INT32", binary=not binary),
        tensor("temperature", [0.0], np.float32, "FP32", binary=binary),
        tensor("stop_words", [b"zzz", b"yyy"], np.object_, "BYTES", binary=binary),
        tensor("exclude_input_in_output", [True], np.bool_, "BOOL", binary=binary),
    ]
    outputs = [
        triton.InferRequestedOutput("num_output_tokens", binary_data=not binary),
        triton.InferRequestedOutput("text_output", binary_data=binary),
    ]
    async with server.triton() as client:
        result = await client.infer(
            "org/tiny",
            inputs,
            model_version="1",
            outputs=outputs,
            request_id="mine",
            request_compression_algorithm=request_compression,
            response_compression_algorithm=response_compression,
        )
    text = result.as_numpy("text_output")[0]
    assert (text if isinstance(text, str) else text.decode()) == ANSWER
    assert result.as_numpy("num_output_tokens").tolist() == [len(ANSWER_IDS)]
    response = result.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("mine", "org/tiny", "1")
    assert [output["name"] for output in response["outputs"]] == ["num_output_tokens", "text_output"]
    [request] = server.source.requests
    assert (request.request_id, request.stop, request.sampling.temperature) == ("mine", ("zzz", "yyy"), 0)
    assert server.source.streams[0].closed.is_set()


async def test_without_requested_outputs_all_are_bytes_and_the_prompt_comes_first(server: Server) -> None:
    async with server.triton() as client:
        result = await client.infer("org/tiny", [text_input()], parameters={"max_tokens": 50})
    assert result.as_numpy("text_output").tolist() == [b"hi" + ANSWER.encode()]
    assert "id" not in result.get_response()


async def test_the_wire_form_of_infer(server: Server) -> None:
    body = {**json_call(max_tokens=50, binary_data_output=True, n=2), "outputs": [{"name": "text_output"}]}
    async with server.http() as http:
        binary = await http.post(INFER, json=body)
        body["outputs"][0]["parameters"] = {"binary_data": False}
        plain = await http.post(INFER, json=body, headers={"accept-encoding": "gzip;q=0, deflate;q=0"})
        nested = json_call()
        nested["inputs"][0] |= {"shape": [1, 1], "data": [["hi"]]}
        reshaped = await http.post(INFER, json=nested)
    assert binary.headers["content-type"] == "application/octet-stream"
    assert binary.headers["content-encoding"] == "gzip"
    assert len(binary.headers["x-request-id"]) == 32
    num_json_bytes = int(binary.headers["inference-header-content-length"])
    said = b"hi" + ANSWER.encode()
    element = len(said).to_bytes(4, "little") + said
    assert binary.content[num_json_bytes:] == element * 2
    assert json.loads(binary.content[:num_json_bytes]) == {
        "model_name": "org/tiny",
        "model_version": "1",
        "outputs": [
            {
                "name": "text_output",
                "datatype": "BYTES",
                "shape": [2],
                "parameters": {"binary_data_size": 2 * len(element)},
            }
        ],
    }
    assert "content-encoding" not in plain.headers
    assert plain.json()["outputs"][0]["data"] == ["hi" + ANSWER] * 2
    assert reshaped.status_code == 200


def edited(**changes: Any) -> dict[str, Any]:
    """A request with changes to its one input."""
    body = json_call()
    body["inputs"][0] |= changes
    return body


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ({}, 400, "text_input"),
        ([], 400, "object"),
        ("{", 400, "JSON"),
        ("[" * 100_000, 400, "JSON"),
        ({**json_call(), "whatever": 1}, 400, "'whatever'"),
        ({**json_call(), "id": 7}, 400, "'id'"),
        ({**json_call(), "parameters": []}, 400, "'parameters'"),
        ({**json_call(), "inputs": {}}, 400, "'inputs'"),
        ({**json_call(), "inputs": [7]}, 400, "input"),
        ({**json_call(), "outputs": [{"name": "nope"}]}, 400, "'nope'"),
        ({**json_call(), "outputs": [{"name": "text_output"}] * 2}, 400, "'text_output'"),
        (
            {**json_call(), "outputs": [{"name": "text_output", "parameters": {"classification": 3}}]},
            400,
            "class",
        ),
        (
            {**json_call(), "outputs": [{"name": "text_output", "parameters": {"binary_data": 1}}]},
            400,
            "binary",
        ),
        (edited(name="nope"), 400, "'nope'"),
        (edited(datatype="INT32", data=[1]), 400, "'text_input'"),
        (edited(datatype="TEXT"), 400, "'text_input'"),
        (edited(datatype=None), 400, "'text_input'"),
        (edited(shape=[2]), 400, "'text_input'"),
        (edited(shape=[-1]), 400, "'text_input'"),
        (edited(shape=["1"]), 400, "'text_input'"),
        (edited(shape=[10**4000] * 2), 400, "'text_input'"),
        (edited(shape=[1] * 17), 400, "'text_input'"),
        (edited(data="hi"), 400, "'text_input'"),
        (edited(data=["hi", ["there"]]), 400, "'text_input'"),
        (edited(data=["\ud800"]), 400, "'text_input'"),
        (edited(extra=1), 400, "'extra'"),
        (edited(parameters={"binary_data_size": 6}), 400, "'text_input'"),
        (edited(parameters={"shared_memory_region": "r"}), 400, "shared memory"),
        (json_call(temperature=3), 400, "temperature"),
        (json_call(beam_width=4), 400, "'beam_width'"),
        (json_call(sequence_id=4), 400, "'sequence_id'"),
        (json_call("hi " * 200), 400, "text_input"),
        (json_call("refuse"), 503, "disabled"),
        (json_call("fail at once"), 503, "queue"),
        (json_call("hang", timeout=50_000), 504, "timeout"),
        (json_call("bug"), 500, "logged"),
    ],
)
async def test_errors_of_infer(server: Server, body: Any, status: int, named: str) -> None:
    async with server.http() as http:
        content = body if isinstance(body, str) else json.dumps(body)
        result = await http.post(INFER, content=content)
    error = result.json()
    assert set(error) == {"error"}
    assert (result.status_code, named in error["error"]) == (status, True), error
    assert result.headers.get("retry-after") == ("3" if "queue" in named else None)
    assert len(result.headers["x-request-id"]) == 32
    for stream in server.source.streams:
        assert stream.closed.is_set()


@pytest.mark.parametrize(
    ("header", "tail", "named"),
    [
        (0, b"", "one input"),
        (999, b"", "inference-header"),
        (-5, b"", "inference-header"),
        (10**30, b"", "inference-header"),
        ("0" * 5000, b"", "inference-header"),
        (None, b"\x02\x00\x00\x00hi", "JSON"),
        ("all", b"\x02\x00\x00\x00hi?", "bytes"),
        ("all", b"\x02\x00\x00", "'text_input'"),
        ("all", b"\x09\x00\x00\x00hi", "'text_input'"),
    ],
)
async def test_errors_of_binary_data(server: Server, header: Any, tail: bytes, named: str) -> None:
    body = {
        "inputs": [
            {
                "name": "text_input",
                "datatype": "BYTES",
                "shape": [1],
                "parameters": {"binary_data_size": 6},
            }
        ]
    }
    head = json.dumps(body).encode()
    headers = {}
    if header is not None:
        headers = {"inference-header-content-length": str(len(head) if header == "all" else header)}
    async with server.http() as http:
        result = await http.post(INFER, content=head + tail, headers=headers)
    assert (result.status_code, named in result.json()["error"]) == (400, True), result.text


async def test_compressed_bodies_that_lie(folder: Path) -> None:
    bomb = gzip.compress(b" " * 1_000_000)
    async with running(folder, config=RouterConfig(max_body_bytes=16_384)) as server, server.http() as http:
        for body, encoding, status in (
            (bomb, "gzip", 413),
            (b"x" * 20_000, "identity", 413),
            (b"{}", "gzip", 400),
            (gzip.compress(b"{}")[:-4], "gzip", 400),
            (zlib.compress(b"{}") + b"more", "deflate", 400),
            (b"{}", "br", 400),
        ):
            result = await http.post(INFER, content=body, headers={"content-encoding": encoding})
            assert (result.status_code, list(result.json())) == (status, ["error"]), result.text


# Generate ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nested", [True, False])
async def test_generate(server: Server, nested: bool) -> None:
    fields = {"max_tokens": 50, "temperature": 0, "stop_words": ["zzz"], "return_finish_reason": True}
    body = {"id": "42", "text_input": "hi", **({"parameters": fields} if nested else fields)}
    async with server.http() as http:
        for path in (GENERATE, "/v2/models/org/tiny/versions/1/generate"):
            result = await http.post(path, json=body)
            assert result.json() == {
                "id": "42",
                "model_name": "org/tiny",
                "model_version": "1",
                "text_output": "hi" + ANSWER,
                "finish_reason": "stop",
            }
        several = await http.post(GENERATE, json={"text_input": "hi", "max_tokens": 50, "n": 2})
    assert several.json()["text_output"] == ["hi" + ANSWER] * 2
    assert "id" not in several.json()
    assert {request.stop for request in server.source.requests} == {("zzz",), ()}


async def test_generate_stream(server: Server) -> None:
    async with server.http() as http:
        body = {"text_input": "hi", "stream": True, "max_tokens": 50, "id": "7"}
        streamed = await http.post(STREAM, json=body)
        single = await http.post(STREAM, json={**body, "stream": False, "exclude_input_in_output": True})
        failing = await http.post(STREAM, json={**body, "text_input": "fail later"})
    assert streamed.headers["content-type"] == "text/event-stream; charset=utf-8"
    chunks = events(streamed.text)
    assert len(chunks) == len(ANSWER_IDS)
    assert "".join(chunk["text_output"] for chunk in chunks) == ANSWER
    assert {(chunk["id"], chunk["model_name"], chunk["model_version"]) for chunk in chunks} == {
        ("7", "org/tiny", "1")
    }
    assert [event["text_output"] for event in events(single.text)] == [ANSWER]
    *before, last = events(failing.text)
    assert len(before) == 3
    assert last == {"error": "The worker died twice under it."}


def events(text: str) -> list[dict[str, Any]]:
    *whole, rest = text.split("\n\n")
    assert rest == ""
    return [json.loads(event.removeprefix("data: ")) for event in whole]


@pytest.mark.parametrize("path", [GENERATE, STREAM])
@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ({}, 400, "text_input"),
        ([], 400, "object"),
        ({"text_input": "hi", "whatever": 1}, 400, "'whatever'"),
        ({"text_input": "hi", "max_tokens": 1, "parameters": {"max_tokens": 1}}, 400, "twice"),
        ({"text_input": "hi", "parameters": 7}, 400, "'parameters'"),
        ({"text_input": 7}, 400, "'text_input'"),
        ({"text_input": "\ud800"}, 400, "'text_input'"),
        ({"text_input": "hi", "temperature": 9}, 400, "temperature"),
        ({"text_input": "fail at once", "stream": True}, 503, "queue"),
        ({"text_input": "bug", "stream": True}, 500, "logged"),
    ],
)
async def test_errors_of_generate(server: Server, path: str, body: Any, status: int, named: str) -> None:
    async with server.http() as http:
        result = await http.post(path, content=json.dumps(body))
    assert result.headers["content-type"] == "application/json"
    assert (result.status_code, named in result.json()["error"]) == (status, True), result.text
    for stream in server.source.streams:
        assert stream.closed.is_set()


@pytest.mark.parametrize("path", [GENERATE, STREAM])
async def test_a_client_that_goes_away_frees_what_it_held(server: Server, path: str) -> None:
    async with server.http() as http:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await http.post(path, json={"text_input": "hang", "stream": True})
    await asyncio.wait_for(server.source.streams[-1].closed.wait(), 5)


# The rest ---------------------------------------------------------------------------------------------


async def test_paths_methods_models_and_versions(server: Server) -> None:
    model = "/v2/models/org/tiny"
    expected = {
        ("GET", "/v2"): 200,
        ("GET", "/v2/health/live"): 200,
        ("GET", "/v2/health/ready"): 200,
        ("GET", model): 200,
        ("GET", f"{model}/versions/1"): 200,
        ("GET", f"{model}/versions/1/ready"): 200,
        ("GET", f"{model}/versions/2/ready"): 400,
        ("GET", f"{model}/versions/2"): 404,
        ("GET", f"{model}/versions/x"): 400,
        ("GET", f"{model}/config"): 200,
        ("GET", f"{model}/stats"): 200,
        ("GET", "/v2/models/stats"): 200,
        ("GET", "/v2/models/nope"): 404,
        ("GET", "/v2/models/nope/ready"): 400,
        ("POST", "/v2/models/nope/infer"): 404,
        ("POST", "/v2/models/nope/generate_stream"): 404,
        ("GET", f"{model}/infer"): 405,
        ("POST", f"{model}/versions/1/config"): 405,
        ("POST", "/v2"): 405,
        ("GET", "/v2/nope"): 404,
        ("GET", "/v2/repository/index"): 405,
        ("POST", "/v2/repository/elsewhere/index"): 400,
        ("GET", "/v2/trace/setting"): 503,
        ("GET", f"{model}/trace/setting"): 503,
        ("POST", "/v2/logging"): 503,
        ("GET", "/v2/systemsharedmemory/status"): 200,
        ("GET", "/v2/systemsharedmemory/region/r/status"): 404,
        ("POST", "/v2/cudasharedmemory/region/r/register"): 501,
        ("POST", "/v2/systemsharedmemory/unregister"): 501,
    }
    async with server.http() as http:
        for (method, path), status in expected.items():
            result = await http.request(method, path)
            assert result.status_code == status, (method, path, result.text)
            if status >= 400 and not path.endswith("/ready"):
                assert set(result.json()) == {"error"}
        assert (await http.get(f"{model}/infer")).headers["allow"] == "POST"


async def test_the_repository_needs_the_admin_key(server: Server) -> None:
    load, unload = "/v2/repository/models/org/tiny/load", "/v2/repository/models/org/tiny/unload"
    key = {"authorization": f"Bearer {ADMIN_KEY}"}
    async with server.http() as http:
        assert (await http.post(load)).status_code == 401
        assert server.repository.calls == []
        assert (await http.post(load, headers=key)).status_code == 200
        body = {"parameters": {"unload_dependents": False}}
        assert (await http.post(unload, headers=key, json=body)).status_code == 200
        for refused in ({"parameters": {"config": "{}"}}, {"whatever": 1}, {"parameters": [1]}):
            assert (await http.post(load, headers=key, json=refused)).status_code == 400
        assert (await http.post(load.replace("org/tiny", "nope"), headers=key)).status_code == 404
        everything = (await http.post("/v2/repository/index")).json()
        ready = (await http.post("/v2/repository/index", json={"ready": True})).json()
        assert (await http.post("/v2/repository/index", json={"ready": 1})).status_code == 400
    assert server.repository.calls == [("load", "org/tiny"), ("unload", "org/tiny")]
    assert [entry["name"] for entry in everything] == ["org/tiny", "off"]
    assert ready == [{"name": "org/tiny", "version": "1", "state": "READY", "reason": ""}]


async def test_keys(folder: Path) -> None:
    def authenticate(key: str) -> Tenant | None:
        return Tenant("acme") if key == "k1" else None

    async with running(folder, authenticate=authenticate, allow_anonymous=False) as server:
        async with server.http() as http:
            assert (await http.get("/v2/health/ready")).status_code == 200
            refused = await http.post(INFER, content=b"nonsense")
            assert (refused.status_code, list(refused.json())) == (401, ["error"])
            assert refused.headers["www-authenticate"] == "Bearer"
        async with server.triton() as client:
            with pytest.raises(InferenceServerException, match="API key"):
                await client.get_server_metadata()
            headers = {"authorization": "Bearer k1"}
            await client.infer("org/tiny", [text_input()], headers=headers)
    assert server.source.requests[0].tenant == "acme"
