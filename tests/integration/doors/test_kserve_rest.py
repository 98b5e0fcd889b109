"""``infer`` of the KServe v2 REST door on a real port: bodies as clients send them, and Triton's own client."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import tritonclient.http.aio as triton
from support.kserve_rest_door import ANSWER, ANSWER_IDS, TOKENIZER, RestDoor, rest_door, text_input
from support.router_doors import write_model_folder

from router.request.bounds import RouterConfig

# One server, and one event loop, for all tests: to start one takes longer than most of them.
pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

INFER = "/v2/models/org/tiny/infer"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("model"), TOKENIZER)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_server(folder: Path) -> AsyncIterator[RestDoor]:
    async with rest_door(folder) as started:
        yield started


@pytest.fixture
def server(shared_server: RestDoor) -> RestDoor:
    shared_server.forget()
    return shared_server


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
    server: RestDoor, binary: bool, request_compression: str | None, response_compression: str | None
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


async def test_without_requested_outputs_all_are_bytes_and_the_prompt_comes_first(server: RestDoor) -> None:
    async with server.triton() as client:
        result = await client.infer("org/tiny", [text_input()], parameters={"max_tokens": 50})
    assert result.as_numpy("text_output").tolist() == [b"hi" + ANSWER.encode()]
    assert "id" not in result.get_response()


async def test_the_wire_form_of_infer(server: RestDoor) -> None:
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
        ("[" * 100_000, 400, "100000 arrays"),
        ("[" * 10_000, 400, "JSON"),
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
        (edited(shape=[10**4000] * 2), 400, "JSON"),
        (edited(shape=[1] * 17), 400, "'text_input'"),
        (edited(data="hi"), 400, "'text_input'"),
        (edited(data=["hi", ["there"]]), 400, "'text_input'"),
        (edited(data=["\ud800"]), 400, "surrogate"),
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
async def test_errors_of_infer(server: RestDoor, body: Any, status: int, named: str) -> None:
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


@pytest.mark.parametrize("path", ["infer", "generate", "generate_stream"])
async def test_answers_say_when_their_first_token_was_to_come(server: RestDoor, path: str) -> None:
    told = []
    async with server.http() as http:
        for text in ("predict", "hi"):
            body = json_call(text) if path == "infer" else {"text_input": text}
            answer = await http.post(INFER.replace("infer", path), content=json.dumps(body))
            assert answer.status_code == 200
            told.append(answer.headers.get("x-mooring-predicted-ttft-ms"))
    assert told == [str(125 * len(TOKENIZER.encode("predict").ids)), None]


async def test_refusals_say_whether_and_when_to_come_again(server: RestDoor) -> None:
    async with server.http() as http:
        full = await http.post(INFER, content=json.dumps(json_call("fail at once")))
        late = await http.post(INFER, content=json.dumps(json_call("too long")))
    assert (full.headers["retry-after"], full.headers["retry-after-ms"]) == ("3", "2500")
    assert (late.status_code, late.headers["x-should-retry"]) == (503, "false")
    assert late.json() == {"error": "It would take too long.", "predicted_wait_ms": 1235}


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
async def test_errors_of_binary_data(server: RestDoor, header: Any, tail: bytes, named: str) -> None:
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
    async with rest_door(folder, config=RouterConfig(max_body_bytes=16_384)) as server, server.http() as http:
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
