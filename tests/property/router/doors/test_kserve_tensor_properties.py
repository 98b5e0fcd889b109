"""Tensors and requests of the KServe protocol: what numpy and Triton's client write is read as it was meant,
and nothing that anybody sends raises anything but our errors."""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import serialize_byte_tensor, triton_to_np_dtype

from mooring.errors import InvalidRequestError
from router.doors.kserve.fields import FIELDS
from router.doors.kserve.grpc_messages import read_infer_request
from router.doors.kserve.inputs import parse_request
from router.doors.kserve.outputs import OUTPUTS
from router.doors.kserve.tensors import DATATYPES, check_tensor, decode_tensor, encode_values

NUMPY = [name for name in DATATYPES if name not in ("BYTES", "BF16")]
SHAPES = st.lists(st.integers(0, 4), max_size=4)


def values_of(datatype: str, count: int) -> st.SearchStrategy[list[Any]]:
    if datatype == "BYTES":
        one: st.SearchStrategy[Any] = st.binary(max_size=12)
    elif datatype == "BOOL":
        one = st.booleans()
    elif datatype in ("FP16", "FP32", "FP64"):
        one = st.floats(width={"FP16": 16, "FP32": 32, "FP64": 64}[datatype])
    else:
        limits = np.iinfo(triton_to_np_dtype(datatype))
        one = st.integers(int(limits.min), int(limits.max))
    return st.lists(one, min_size=count, max_size=count)


def outcome(call: Callable[[], Any]) -> tuple[Any, InvalidRequestError | None]:
    """What a call gives, or the one kind of error that it may raise."""
    try:
        return call(), None
    except InvalidRequestError as error:
        return None, error


def same(left: Any, right: Any) -> bool:
    return left == right or (isinstance(left, float) and math.isnan(left) and math.isnan(right))


@given(st.sampled_from([*NUMPY, "BYTES"]), SHAPES, st.data())
def test_values_come_back_as_they_were_and_are_written_as_triton_writes_them(
    datatype: str, shape: list[int], data: st.DataObject
) -> None:
    values = data.draw(values_of(datatype, math.prod(shape)))
    raw = encode_values(datatype, values)
    if datatype == "BYTES":
        written = serialize_byte_tensor(np.array(values, dtype=np.object_)) if values else None
        assert raw == (written.item() if written is not None and written.size else b"")
    else:
        assert raw == np.array(values, dtype=triton_to_np_dtype(datatype)).tobytes()
    for tensor in (decode_tensor("t", datatype, shape, raw), check_tensor("t", datatype, shape, values)):
        assert tensor.shape == tuple(shape)
        assert len(tensor.values) == len(values)
        assert all(map(same, tensor.values, values))


@given(st.floats(width=32))
def test_bf16_is_the_nearest_and_what_it_can_hold_comes_back(value: float) -> None:
    raw = encode_values("BF16", [value])
    (read,) = decode_tensor("t", "BF16", [1], raw).values
    if math.isnan(value):
        assert math.isnan(read)
        return
    (bits,) = struct.unpack("<H", raw)
    neighbours = [
        struct.unpack("<f", struct.pack("<I", each << 16))[0]
        for each in (bits - 1, bits + 1)
        if each >> 16 == 0
    ]
    if math.isfinite(read):
        assert all(abs(read - value) <= abs(other - value) for other in neighbours if math.isfinite(other))
    assert encode_values("BF16", [read]) == raw


@given(st.sampled_from(DATATYPES), st.lists(st.integers(-2, 1 << 62), max_size=20), st.binary(max_size=40))
def test_bytes_that_do_not_fit_are_refused_by_name(datatype: str, shape: list[int], raw: bytes) -> None:
    tensor, error = outcome(lambda: decode_tensor("mine", datatype, shape, raw))
    if error is None:
        assert math.prod(shape) == len(tensor.values)
    else:
        assert error.param == "mine"
        assert "'mine'" in error.message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from([*FIELDS, "timeout", "triton_enable_empty_final_response"]) | st.text(max_size=8)


@given(st.dictionaries(NAMES, JSON, max_size=5), st.lists(st.sampled_from([*OUTPUTS, "other"]), max_size=3))
def test_parameters_are_taken_or_refused_by_name(
    given_parameters: dict[str, Any], outputs: list[str]
) -> None:
    request, error = outcome(lambda: parse_request([], {"text_input": "x", **given_parameters}, outputs))
    if error is None:
        assert isinstance(request.prompt, str)
        assert set(given_parameters) <= {*FIELDS, "timeout", "triton_enable_empty_final_response"}
    else:
        assert error.param is not None
        assert f"'{error.param}'" in error.message or repr(error.param) in error.message


PARAMETERS = st.dictionaries(
    NAMES,
    st.sampled_from([pb.InferParameter()])
    | st.builds(pb.InferParameter, bool_param=st.booleans())
    | st.builds(pb.InferParameter, int64_param=st.integers(-(1 << 63), (1 << 63) - 1))
    | st.builds(pb.InferParameter, string_param=st.text(max_size=8))
    | st.builds(pb.InferParameter, double_param=st.floats()),
    max_size=3,
)
CONTENTS = st.builds(
    pb.InferTensorContents,
    bytes_contents=st.lists(st.binary(max_size=4), max_size=2),
    int_contents=st.lists(st.integers(-5, 5), max_size=2),
    fp32_contents=st.lists(st.floats(width=32), max_size=2),
)
TENSORS = st.builds(
    pb.ModelInferRequest.InferInputTensor,
    name=NAMES,
    datatype=st.sampled_from([*DATATYPES, "", "FLOAT"]),
    shape=st.lists(st.integers(-1, 3) | st.integers(-(1 << 63), (1 << 63) - 1), max_size=3),
    contents=st.none() | CONTENTS,
    parameters=PARAMETERS,
)
REQUESTS = st.builds(
    pb.ModelInferRequest,
    inputs=st.lists(TENSORS, max_size=3),
    raw_input_contents=st.lists(st.binary(max_size=12), max_size=3),
    parameters=PARAMETERS,
)


@given(REQUESTS)
def test_no_message_raises_anything_but_our_errors(message: Any) -> None:
    request, error = outcome(lambda: read_infer_request(message))
    assert (request is None) == (error is not None)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_our_errors(raw: bytes) -> None:
    message = pb.ModelInferRequest()
    with contextlib.suppress(DecodeError):  # which gRPC answers itself; what was read until then stays
        message.ParseFromString(raw)
    request, error = outcome(lambda: read_infer_request(message))
    assert (request is None) == (error is not None)
