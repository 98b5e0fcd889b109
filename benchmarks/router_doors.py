"""The doors as the router's benchmark uses them: a request, and the events or messages of a stream of N
tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tritonclient.grpc import service_pb2

from mooring.v1 import inference_pb2 as pb

__all__ = ["DOORS", "MODEL", "Door"]

MODEL = "null"


@dataclass(frozen=True, slots=True)
class Door:
    """One door.

    Attributes:
        protocol: the load generator's word, ``http`` or ``grpc``; it also decides the address.
        path: path of the route or of the method.
        body: makes the body of a request with this text that asks for so many tokens.
        num_extra_units: events or messages of a stream beside one for each token.
    """

    protocol: str
    path: str
    body: Callable[[str, int], bytes]
    num_extra_units: int


def _chat(text: str, max_tokens: int) -> bytes:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": max_tokens,
        "stream": True,
    }
    return json.dumps(body).encode()


def _native(text: str, max_tokens: int) -> bytes:
    return pb.GenerateTextRequest(model=MODEL, prompt=text, max_tokens=max_tokens).SerializeToString()


def _kserve(text: str, max_tokens: int) -> bytes:
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    inputs = (
        ("text_input", "BYTES", text.encode()),
        ("max_tokens", "INT32", max_tokens),
        ("stream", "BOOL", True),
    )
    for name, datatype, value in inputs:
        tensor = request.inputs.add(name=name, datatype=datatype, shape=[1])
        field = {"BYTES": "bytes", "INT32": "int", "BOOL": "bool"}[datatype]
        getattr(tensor.contents, f"{field}_contents").append(value)
    content: bytes = request.SerializeToString()
    return content


DOORS: Mapping[str, Door] = MappingProxyType(
    {
        # Beside the tokens: the role that opens a chat answer, and [DONE].
        "http": Door("http", "/v1/chat/completions", _chat, 2),
        # Beside the tokens: the usage.
        "grpc": Door("grpc", "/mooring.v1.Inference/Generate", _native, 1),
        "kserve": Door("grpc", "/inference.GRPCInferenceService/ModelStreamInfer", _kserve, 0),
    }
)
