"""Bodies of the KServe REST door: what Triton's client writes is read, what it is answered it reads, and nothing
but our own errors comes of anything else."""

from __future__ import annotations

import contextlib
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.http as triton
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import Response
from support.router_doors import served_model

from mooring.errors import MooringError
from router.doors.kserve.inputs import parse_request
from router.doors.kserve.rest_body import compressed
from router.doors.kserve.rest_generate import read_generate
from router.doors.kserve.rest_infer import HEADER_LENGTH, InferCall, answer_infer, read_infer
from router.doors.kserve.tensors import Tensor

MODEL = served_model("org/tiny", Path("nowhere"))
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
names = st.sampled_from(["text_input", "max_tokens", "stop_words", "stream", "temperature", "nope"])
inputs = st.fixed_dictionaries(
    {},
    optional={
        "name": names | json_values,
        "datatype": st.sampled_from(["BYTES", "INT32", "BOOL", "FP32"]) | json_values,
        "shape": st.lists(st.integers(-1, 3), max_size=3) | json_values,
        "data": st.lists(json_values, max_size=3) | json_values,
        "parameters": st.fixed_dictionaries(
            {}, optional={"binary_data_size": st.integers(-1, 40) | json_values}
        ),
    },
)
bodies = st.fixed_dictionaries(
    {},
    optional={
        "id": json_values,
        "parameters": st.dictionaries(names, json_values, max_size=3) | json_values,
        "inputs": st.lists(inputs | json_values, max_size=3) | json_values,
        "outputs": st.lists(st.fixed_dictionaries({"name": names}) | json_values, max_size=2) | json_values,
    },
)


@given(text=texts, words=st.lists(texts, min_size=1, max_size=3), binary=st.booleans(), mixed=st.booleans())
def test_what_the_client_writes_is_read(text: str, words: list[str], binary: bool, mixed: bool) -> None:
    prompt = triton.InferInput("text_input", [1], "BYTES")
    prompt.set_data_from_numpy(np.array([text.encode()], dtype=np.object_), binary_data=binary)
    stop = triton.InferInput("stop_words", [len(words)], "BYTES")
    stop.set_data_from_numpy(
        np.array([word.encode() for word in words], dtype=np.object_), binary_data=binary is not mixed
    )
    wanted = triton.InferRequestedOutput("text_output", binary_data=binary)
    body, header_length = triton.InferenceServerClient.generate_request_body(
        [prompt, stop], outputs=[wanted], request_id="7"
    )
    call = read_infer(body, None if header_length is None else str(header_length))
    assert (call.request_id, call.request.prompt, call.request.options.stop) == ("7", text, tuple(words))
    assert call.is_binary == {"text_output": binary}


@given(
    text=st.lists(texts | st.just(""), min_size=1, max_size=3),
    numbers=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=4),
    is_binary=st.tuples(st.booleans(), st.booleans()),
    accepted=st.sampled_from(["", "gzip", "deflate", "br", "deflate, gzip;q=0.5", "gzip;q=0", "gzip;q=x"]),
)
def test_what_it_is_answered_the_client_reads(
    text: list[str], numbers: list[float], is_binary: tuple[bool, bool], accepted: str
) -> None:
    request = parse_request([], {"text_input": "x"})
    call = InferCall("", request, dict(zip(("text_output", "numbers"), is_binary, strict=True)), False)
    outputs = [
        Tensor("text_output", "BYTES", (len(text),), [each.encode() for each in text]),
        Tensor("numbers", "FP32", (len(numbers),), numbers),
    ]
    response = compressed(answer_infer(MODEL, call, outputs), accepted)
    header_length = response.headers.get(HEADER_LENGTH)
    result = triton.InferenceServerClient.parse_response_body(
        bytes(response.body),
        header_length=None if header_length is None else int(header_length),
        content_encoding=response.headers.get("content-encoding"),
    )
    read = [each if isinstance(each, str) else each.decode() for each in result.as_numpy("text_output")]
    assert read == text
    assert result.as_numpy("numbers").tolist() == numbers


@given(
    body=bodies, tail=st.binary(max_size=40), header=st.none() | st.integers(-2, 400) | st.text(max_size=4)
)
def test_anything_else_is_an_error_of_ours(body: Any, tail: bytes, header: Any) -> None:
    head = json.dumps(body).encode()
    lengths = (None if header is None else str(header), str(len(head)))
    for header_length in lengths:
        with contextlib.suppress(MooringError):
            read_infer(head + tail, header_length)
    with contextlib.suppress(MooringError):
        read_generate(head)


@given(st.dictionaries(names | st.sampled_from(["id", "parameters"]), json_values, max_size=4))
def test_no_body_of_generate_is_a_bug(body: dict[str, Any]) -> None:
    with contextlib.suppress(MooringError):
        read_generate(json.dumps(body).encode())


@given(st.text(st.characters(codec="ascii"), max_size=30))
def test_no_accept_encoding_is_a_bug(accepted: str) -> None:
    response = compressed(Response(b"body"), accepted)
    if response.headers.get("content-encoding") == "gzip":
        assert gzip.decompress(response.body) == b"body"
