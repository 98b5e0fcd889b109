"""Attacks with what comes before a body: keys that nobody knows, and long headers."""

from __future__ import annotations

from functools import partial

import grpc

from benchmarks.abuse.doors import HTTP_PATHS
from benchmarks.abuse.target import MODEL, Attack, Strike, Target
from benchmarks.abuse.wire import CHANNEL_OPTIONS, handshake, request, send_at_once

__all__ = ["long_headers", "unknown_keys"]

_NUM_REQUESTS, _NUM_CALLS = 2000, 500
_HEADER_BYTES, _METADATA_BYTES = 60_000, 7_000  # gRPC itself refuses more than 8 KiB
_AT_ONCE = 8
_GETS = {
    "models": "/v1/models",
    "kserve": f"/v2/models/{MODEL}",
    "admin": "/admin/v1/models",
    "live": "/health/live",
}
_POSTS = {"completions": HTTP_PATHS["completions"], "tokenize": HTTP_PATHS["tokenize"]}
_CALLS = {
    "grpc": "/mooring.v1.Inference/ListModels",
    "kserve-grpc": "/inference.GRPCInferenceService/ServerMetadata",
}


def unknown_keys() -> dict[str, Attack]:
    """2,000 unknown keys of 60 KB each, by door; over gRPC 500 of 7 KB."""
    doors = ("models", "completions", "tokenize", "kserve", "admin", "websocket")
    return {
        **{door: partial(_requests, door, "authorization: Bearer ") for door in doors},
        **{door: partial(_calls, path) for door, path in _CALLS.items()},
    }


def long_headers() -> dict[str, Attack]:
    """2,000 requests with a header of 60 KB, by door."""
    doors = ("models", "completions", "kserve", "admin", "live", "websocket")
    return {door: partial(_requests, door, "x-long: ") for door in doors}


def _requests(door: str, header: str, target: Target) -> Strike:
    def make(number: int) -> bytes:
        long = (f"{header}{number}".ljust(_HEADER_BYTES, "k"),)
        if door == "websocket":
            return handshake(target, long)
        if door in _POSTS:
            return request(target, _POSTS[door], b"{}", long)
        return request(target, _GETS[door], headers=long, method="GET")

    return partial(send_at_once, target, make, _NUM_REQUESTS, _AT_ONCE)


def _calls(path: str, target: Target) -> Strike:
    def strike() -> list[str]:
        with grpc.insecure_channel(target.grpc, CHANNEL_OPTIONS) as channel:
            method = channel.unary_unary(path, bytes, bytes)
            return [_outcome(method, number) for number in range(_NUM_CALLS)]

    return strike


def _outcome(method: grpc.UnaryUnaryMultiCallable[bytes, bytes], number: int) -> str:
    key = f"Bearer {number}".ljust(_METADATA_BYTES, "k")
    try:
        method(b"", metadata=(("authorization", key),))
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"
