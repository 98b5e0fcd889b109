"""Good requests of every door, and seeded ways to break them."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import Message
from tritonclient.grpc import service_pb2

from mooring.v1 import inference_pb2

__all__ = ["GrpcRequest", "HttpRequest", "RawRequest", "Request", "SocketFrame", "malformed_requests"]

ODD_VALUES: tuple[Any, ...] = (
    None, True, "", "x", -1, 0, 2**31, 2**63, 2**64, 1e308, float("nan"), 0.5, [], {}, [[]], "\ud800", "\0",
    "a" * 5000, [None] * 100, {"": ""}, ["x", 1, None],
)  # fmt: skip
ODD_HEADERS = (
    ("content-type", "text/plain"),
    ("content-type", "application/json; charset=utf-16"),
    ("content-encoding", "gzip"),
    ("content-encoding", "br"),
    ("authorization", "Bearer \u00ff"),
    ("inference-header-content-length", "-1"),
    ("inference-header-content-length", "9" * 5000),
    ("x-request-id", "\u00ff"),
    ("accept-encoding", "gzip;q=nan"),
    ("host", "["),
)


@dataclass(frozen=True)
class HttpRequest:
    """Sent as it stands; ``headers`` come on top of those that HTTP needs."""

    door: str
    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    method: str = "POST"


@dataclass(frozen=True)
class RawRequest:
    """Bytes on a connection of the HTTP door."""

    door: str
    data: bytes


@dataclass(frozen=True)
class SocketFrame:
    """A text frame of the WebSocket, or a binary one."""

    door: str
    data: str | bytes


@dataclass(frozen=True)
class GrpcRequest:
    """A message of a call, as bytes."""

    door: str
    call: str
    is_stream: bool
    answers_stream: bool
    data: bytes


Request = HttpRequest | RawRequest | SocketFrame | GrpcRequest


def malformed_requests(model: str, victim: str, num: int, seed: int) -> Iterator[Request]:
    """As many broken requests as wanted, of all doors in turn. A few of them turn out to be good ones.

    Args:
        model: served.
        victim: served too; the admin API's requests change its deployment and no other.
    """
    dice = random.Random(seed)
    doors = [*_http_doors(model, victim), _raw_door(model), _socket(model), *_grpc_doors(model)]
    for place in range(num):
        yield doors[place % len(doors)](dice)


def break_json(value: Any, dice: random.Random) -> Any:
    """A copy with one to three things wrong."""
    value = copy.deepcopy(value)
    for _ in range(dice.randint(1, 3)):
        if not isinstance(value, dict):
            break
        value = _break_once(value, dice)
    return value


def break_bytes(data: bytes, dice: random.Random) -> bytes:
    """A copy cut off, with bytes changed, or with others between."""
    if not data:
        return b"\xff"
    at = dice.randrange(len(data))
    kind = dice.randrange(4)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + bytes([data[at] ^ (1 << dice.randrange(8))]) + data[at + 1 :]
    if kind == 2:
        return data[:at] + dice.randbytes(dice.randint(1, 20)) + data[at:]
    return data + data


def _break_once(value: dict[str, Any], dice: random.Random) -> Any:
    kind = dice.randrange(6)
    spots = list(_spots(value))
    holder, key = dice.choice(spots)
    if kind == 0:
        del holder[key]
    elif kind == 1:
        value[dice.choice(["unknown", "tools", "", "image"])] = _odd(dice)
    elif kind == 2 and dice.random() < 0.2:
        return _odd(dice)
    else:
        holder[key] = _odd(dice)
    return value


def _odd(dice: random.Random) -> Any:
    return copy.deepcopy(dice.choice(ODD_VALUES))


def _spots(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a JSON value at which another value could stand."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _spots(value[key])
    if not keys and isinstance(value, dict):
        value["empty"] = None
        yield value, "empty"


def _dump(value: Any, dice: random.Random) -> bytes:
    if dice.random() < 0.03:
        return b"[" * 100_000
    return json.dumps(value).encode()


def _http_doors(model: str, victim: str) -> list[Callable[[random.Random], Request]]:
    completion = {
        "model": model, "prompt": "The quick", "max_tokens": 4, "temperature": 0.7, "top_p": 0.9, "top_k": 3,
        "n": 2, "stop": ["x"], "logprobs": 2, "seed": 7, "logit_bias": {"5": 1.5}, "stream": False,
        "min_tokens": 1, "stop_token_ids": [3], "bad_words": ["fox"], "echo": False,
    }  # fmt: skip
    message = {"role": "user", "content": [{"type": "text", "text": "hi"}]}
    chat = {
        "model": model, "messages": [message], "max_tokens": 4, "stream": True, "logprobs": True,
        "top_logprobs": 2, "stream_options": {"include_usage": True},
    }  # fmt: skip
    infer = {
        "id": "1",
        "inputs": [
            {"name": "text_input", "datatype": "BYTES", "shape": [1, 1], "data": ["hi"]},
            {"name": "max_tokens", "datatype": "INT32", "shape": [1, 1], "data": [3]},
        ],
        "outputs": [{"name": "text_output"}],
    }
    generate = {"text_input": "hi", "max_tokens": 3, "parameters": {"temperature": 0.5}}
    policy = {"priority": 1, "enabled": True, "pinned": False, "idle_timeout_s": 60.0}
    return [
        _json_door("openai", "/v1/completions", completion),
        _json_door("openai", "/v1/chat/completions", chat),
        _json_door("tokenize", "/tokenize", {"model": model, "prompt": "hi", "add_special_tokens": True}),
        _json_door("tokenize", "/detokenize", {"model": model, "tokens": [1, 2, 3]}),
        _json_door("kserve-rest", f"/v2/models/{model}/infer", infer),
        _json_door("kserve-rest", f"/v2/models/{model}/generate", generate),
        _json_door("kserve-rest", f"/v2/models/{model}/generate_stream", generate),
        _binary_door(model),
        _json_door("admin", f"/admin/v1/deployments/{victim}", policy, method="PATCH"),
        _json_door("admin", "/admin/v1/tenants", {"name": "t"}),
        _json_door("admin", "/admin/v1/models", {"name": "m", "source": "/nowhere", "policy": policy}),
    ]


def _json_door(
    door: str, path: str, good: dict[str, Any], *, method: str = "POST"
) -> Callable[[random.Random], Request]:
    def broken(dice: random.Random) -> Request:
        kind = dice.randrange(10)
        body = _dump(break_json(good, dice) if kind < 7 else good, dice)
        if kind == 7:
            body = break_bytes(body, dice)
        headers = {
            "content-type": "application/json",
            **dict([dice.choice(ODD_HEADERS)] if kind == 8 else []),
        }
        return HttpRequest(door, path, body, headers, "PUT" if kind == 9 else method)

    return broken


def _binary_door(model: str) -> Callable[[random.Random], Request]:
    """Triton's binary tensor data: JSON, and bytes behind it."""
    tail = struct.pack("<I", 2) + b"hi" + struct.pack("<i", 3)
    tensors: list[Any] = [
        {"name": "text_input", "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": 6}},
        {"name": "max_tokens", "datatype": "INT32", "shape": [1, 1], "parameters": {"binary_data_size": 4}},
    ]
    good = {"inputs": tensors, "parameters": {"binary_data_output": True}}

    def broken(dice: random.Random) -> Request:
        kind = dice.randrange(3)
        head = json.dumps(break_json(good, dice) if kind == 0 else good).encode()
        length = len(head) + (dice.randint(-5, 20) if kind == 1 else 0)
        body = head + (break_bytes(tail, dice) if kind == 2 else tail)
        headers = {"inference-header-content-length": str(length)}
        return HttpRequest("kserve-rest-binary", f"/v2/models/{model}/infer", body, headers)

    return broken


def _raw_door(model: str) -> Callable[[random.Random], Request]:
    """HTTP itself is what is broken: heads, lengths, and where things end."""
    body = json.dumps({"model": model, "prompt": "hi", "max_tokens": 2}).encode()
    lengths = [b"Content-Length: %d" % (len(body) + more) for more in (-3, 0, 0, 0, 7)]
    lengths += [b"Content-Length: -1", b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, x"]

    def broken(dice: random.Random) -> Request:
        lines = [b"POST /v1/completions HTTP/1.1", b"Host: localhost", b"Content-Type: application/json"]
        lines += dice.sample(lengths, dice.choice([1, 1, 2]))
        data = b"\r\n".join([*lines, b"", body])
        return RawRequest("http", break_bytes(data, dice) if dice.random() < 0.7 else data)

    return broken


def _socket(model: str) -> Callable[[random.Random], Request]:
    body = {"model": model, "prompt": "hi", "max_tokens": 3, "stream": True}
    good = {"id": "1", "type": "completions", "body": body}

    def broken(dice: random.Random) -> Request:
        frame = _dump(break_json(good, dice), dice)
        if dice.random() < 0.2:
            return SocketFrame("websocket", break_bytes(frame, dice))  # and a binary one
        return SocketFrame("websocket", frame.decode())

    return broken


def _grpc_doors(model: str) -> list[Callable[[random.Random], Request]]:
    native = inference_pb2.GenerateTextRequest(
        model=model, prompt="The quick", max_tokens=4, temperature=0.5, n=2, stop=["x"], logprobs=2
    )
    infer = service_pb2.ModelInferRequest(model_name=model, id="1")
    for name, datatype, data in (
        ("text_input", "BYTES", struct.pack("<I", 2) + b"hi"),
        ("max_tokens", "INT32", struct.pack("<i", 3)),
    ):
        infer.inputs.add(name=name, datatype=datatype, shape=[1, 1])
        infer.raw_input_contents.append(data)
    infer.outputs.add(name="text_output")
    infer.parameters["temperature"].double_param = 0.5
    kserve = "/inference.GRPCInferenceService"
    return [
        _grpc_door("grpc", "/mooring.v1.Inference/Generate", native, answers_stream=True),
        _grpc_door("kserve-grpc", f"{kserve}/ModelInfer", infer),
        _grpc_door("kserve-grpc-stream", f"{kserve}/ModelStreamInfer", infer, stream=True),
    ]


def _grpc_door(
    door: str, call: str, good: Message, *, stream: bool = False, answers_stream: bool = False
) -> Callable[[random.Random], Request]:
    data = good.SerializeToString()

    def broken(dice: random.Random) -> Request:
        changed = data
        for _ in range(dice.randint(1, 3)):
            changed = break_bytes(changed, dice)
        return GrpcRequest(door, call, stream, stream or answers_stream, changed)

    return broken
