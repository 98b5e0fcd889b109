"""The doors that take requests to run a model or to change the server, and how an attacker's bodies go through
each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

from benchmarks.abuse.target import MODEL, Attack, Strike, Target
from benchmarks.abuse.wire import call, frame, post, send_all, send_frames

__all__ = ["GRPC_PATHS", "HTTP_PATHS", "Bodies", "through_doors"]

HTTP_PATHS: Mapping[str, str] = MappingProxyType(
    {
        "completions": "/v1/completions",
        "chat": "/v1/chat/completions",
        "tokenize": "/tokenize",
        "detokenize": "/detokenize",
        "kserve-infer": f"/v2/models/{MODEL}/infer",
        "kserve-generate": f"/v2/models/{MODEL}/generate",
        "kserve-stream": f"/v2/models/{MODEL}/generate_stream",
        "admin": "/admin/v1/models",
    }
)
"""Paths of the doors that take JSON over HTTP."""
GRPC_PATHS: Mapping[str, str] = MappingProxyType(
    {
        "grpc": "/mooring.v1.Inference/Generate",
        "kserve-grpc": "/inference.GRPCInferenceService/ModelInfer",
        "kserve-grpc-stream": "/inference.GRPCInferenceService/ModelStreamInfer",
    }
)
"""Methods of the gRPC doors that run a model."""
_FRAMES = MappingProxyType({"websocket": "completions", "websocket-chat": "chat.completions"})

Bodies = Callable[[], Sequence[bytes]]
"""Makes the bodies of an attack: JSON, or gRPC messages."""


def through_doors(bodies: Mapping[str, Bodies], *, compressed: bool = False) -> dict[str, Attack]:
    """Attacks that send bodies, by door. They go one after the other; over a WebSocket all at once.

    Args:
        compressed: whether gRPC messages are sent as gzip.
    """
    return {door: partial(_through, door, made, compressed) for door, made in bodies.items()}


def _through(door: str, bodies: Bodies, compressed: bool, target: Target) -> Strike:
    if door in HTTP_PATHS:
        return partial(send_all, target, [post(target, HTTP_PATHS[door], each) for each in bodies()])
    if door in _FRAMES:
        frames = [frame(each, _FRAMES[door], str(number)) for number, each in enumerate(bodies())]
        return partial(send_frames, target, frames)
    return call(target, GRPC_PATHS[door], bodies(), compressed=compressed)
