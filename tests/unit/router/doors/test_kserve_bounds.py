"""Bounds of a KServe request: counts are refused before anything is done for each item."""

from __future__ import annotations

import gzip
import json
import struct
import threading
from typing import Any

import pytest
from starlette.requests import Request
from tritonclient.grpc import service_pb2 as pb

from mooring.errors import InvalidRequestError, RequestTooLargeError
from mooring.units import MIB
from router.doors.kserve import grpc_messages, rest_body, rest_infer, tensors
from router.doors.kserve.fields import FIELDS
from router.doors.kserve.grpc_messages import read_infer_request
from router.doors.kserve.inputs import parse_request
from router.doors.kserve.outputs import OUTPUTS
from router.doors.kserve.rest_generate import read_generate
from router.doors.kserve.rest_infer import read_infer
from router.doors.kserve.tensors import MAX_VALUES, check_tensor, decode_tensor


class CountedLengths:
    """The reader of the lengths before elements of ``BYTES``; counts its calls."""

    size = 4

    def __init__(self) -> None:
        self.num_read = 0

    def unpack_from(self, raw: bytes, at: int) -> tuple[Any, ...]:
        self.num_read += 1
        return struct.unpack_from("<I", raw, at)


def refuse_decoding(*_: Any) -> Any:
    raise AssertionError("an input was decoded")


def test_elements_are_counted_by_the_shape_before_any_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = CountedLengths()
    monkeypatch.setattr(tensors, "_LENGTH", lengths)
    with pytest.raises(InvalidRequestError, match=f"more than {MAX_VALUES} elements"):
        decode_tensor("stop_words", "BYTES", [MIB], bytes(4 * MIB))
    assert lengths.num_read == 0
    with pytest.raises(InvalidRequestError, match="not as many"):
        decode_tensor("stop_words", "BYTES", [2], bytes(4 * MIB))
    assert lengths.num_read <= 3
    for shape in ([4 * MIB], [1 << 40, 1 << 40]):
        with pytest.raises(InvalidRequestError, match=f"more than {MAX_VALUES} elements"):
            decode_tensor("stream", "BOOL", shape, bytes(4 * MIB))
        with pytest.raises(InvalidRequestError, match=f"more than {MAX_VALUES} elements"):
            check_tensor("stream", "BOOL", shape, [True] * 10)


@pytest.mark.parametrize(
    ("inputs", "outputs", "named"), [(len(FIELDS) + 1, 0, "inputs"), (1, len(OUTPUTS) + 1, "outputs")]
)
def test_inputs_and_outputs_are_counted_before_any_is_read(
    inputs: int, outputs: int, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = pb.ModelInferRequest()
    for _ in range(inputs):
        message.inputs.add(name="stream", datatype="BOOL", shape=[1])
        message.raw_input_contents.append(b"\x01")
    for _ in range(outputs):
        message.outputs.add(name="text_output")
    tensor = {"name": "stream", "datatype": "BOOL", "shape": [1], "data": [True]}
    body = {"inputs": [tensor] * inputs, "outputs": [{"name": "text_output"}] * outputs}
    monkeypatch.setattr(grpc_messages, "decode_tensor", refuse_decoding)
    monkeypatch.setattr(rest_infer, "check_tensor", refuse_decoding)
    with pytest.raises(InvalidRequestError) as refused:
        read_infer_request(message)
    assert refused.value.param == named
    with pytest.raises(InvalidRequestError) as refused:
        read_infer(json.dumps(body).encode(), None)
    assert refused.value.param == named


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stop", ["x"] * (MAX_VALUES + 1)),
        ("stop_token_ids", [1] * (MAX_VALUES + 1)),
        ("stop_token_ids", json.dumps([1] * (MAX_VALUES + 1))),
        ("logit_bias", {str(each): 1 for each in range(MAX_VALUES + 1)}),
    ],
)
def test_lists_are_counted_whatever_they_come_as(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=f"'{name}': it has more than {MAX_VALUES} elements"):
        parse_request([], {"text_input": "hi", name: value})
    with pytest.raises(InvalidRequestError, match=f"'{name}': it has more than {MAX_VALUES} elements"):
        parse_request([], {"text_input": "hi", "sampling_parameters": json.dumps({name: value})})


@pytest.mark.parametrize("name", ["stop_token_ids", "logit_bias", "sampling_parameters"])
def test_json_within_a_text_is_bounded_as_a_body_is(name: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"'{name}'"):
        parse_request([], {"text_input": "hi", name: "[" + "[]," * MIB + "[]]"})


def test_a_number_is_not_spelled_by_a_long_text() -> None:
    with pytest.raises(InvalidRequestError, match="'max_tokens': it must be a whole number"):
        parse_request([], {"text_input": "hi", "max_tokens": "1" + " " * 100})


def test_an_id_that_each_answer_would_repeat_is_short() -> None:
    fits, too_long = "x" * 1024, json.dumps({"id": "x" * 1025}).encode()
    assert read_generate(json.dumps({"text_input": "hi", "id": fits}).encode()).request_id == fits
    for read in (read_generate, lambda body: read_infer(body, None)):
        with pytest.raises(InvalidRequestError, match="'id'"):
            read(too_long)
    with pytest.raises(InvalidRequestError, match="'id'"):
        read_infer_request(pb.ModelInferRequest(id="x" * 1025))


async def test_a_compressed_body_is_decompressed_off_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its size: 4 KB may become 4 MiB."""
    threads = []

    def decompressed(*given: Any) -> bytes:
        threads.append(threading.current_thread())
        return original(*given)

    original = rest_body._decompressed
    monkeypatch.setattr(rest_body, "_decompressed", decompressed)
    sent = gzip.compress(bytes(4 * MIB))
    headers = [(b"content-encoding", b"gzip")]
    scope = {"type": "http", "method": "POST", "path": "/", "headers": headers, "state": {}}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": sent, "more_body": False}

    assert await rest_body.read_body(Request(scope, receive), 4 * MIB) == bytes(4 * MIB)
    assert threads
    assert threading.current_thread() not in threads
    with pytest.raises(RequestTooLargeError):
        await rest_body.read_body(Request(scope, receive), 4 * MIB - 1)
