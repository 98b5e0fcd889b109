"""Attacks that hold calls of the gRPC door: streams that nobody reads, a thousand streams, a thousand watches."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

import grpc.aio
from tritonclient.grpc import service_pb2

from benchmarks.abuse.doors import GRPC_PATHS
from benchmarks.abuse.target import MODEL, Attack, Strike, Target
from benchmarks.abuse.wire import CHANNEL_OPTIONS, metadata
from mooring.v1 import inference_pb2 as pb

__all__ = ["health_watches", "many_streams", "unread_calls"]

_NUM_UNREAD, _NUM_STREAMS = 16, 1000
_NUM_CHOICES, _MAX_TOKENS, _NUM_LIKELIEST = 128, 4000, 20
_OPEN_S = 5.0  # for calls that the server's limit of streams holds back


def unread_calls() -> dict[str, Attack]:
    """16 long streams of 128 choices whose reader does not read, by door."""
    return {
        "grpc": partial(_held_calls, GRPC_PATHS["grpc"], _native(_NUM_CHOICES, _NUM_LIKELIEST), _NUM_UNREAD),
        "kserve-grpc-stream": partial(_held_calls, GRPC_PATHS["kserve-grpc-stream"], _kserve(), _NUM_UNREAD),
    }


def many_streams() -> dict[str, Attack]:
    """1,000 streams on one connection, by door: each with one long request, or with none."""
    return {
        "grpc": partial(_held_calls, GRPC_PATHS["grpc"], _native(1, 0), _NUM_STREAMS),
        "kserve-grpc-stream": partial(_held_calls, GRPC_PATHS["kserve-grpc-stream"], None, _NUM_STREAMS),
    }


def health_watches() -> dict[str, Attack]:
    """1,000 watches of the server's health on one connection."""
    return {"health": partial(_held_calls, "/grpc.health.v1.Health/Watch", b"", _NUM_STREAMS)}


def _native(num_choices: int, num_likeliest: int) -> bytes:
    return pb.GenerateTextRequest(
        model=MODEL,
        prompt="a",
        n=num_choices,
        max_tokens=_MAX_TOKENS,
        logprobs=num_likeliest,
        ignore_eos=True,
    ).SerializeToString()


def _kserve() -> bytes:
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    request.inputs.add(name="text_input", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"a")
    for name, number in {"n": _NUM_CHOICES, "max_tokens": _MAX_TOKENS, "logprobs": _NUM_LIKELIEST}.items():
        request.parameters[name].int64_param = number
    for name in ("stream", "return_logprobs", "ignore_eos"):
        request.parameters[name].bool_param = True
    content: bytes = request.SerializeToString()
    return content


def _held_calls(path: str, message: bytes | None, number: int, target: Target) -> Strike:
    return lambda: asyncio.run(_hold(target, path, message, number))


async def _hold(target: Target, path: str, message: bytes | None, number: int) -> Sequence[str]:
    """Opens so many calls on one connection, reads none of their answers, and cancels them after a while.

    Args:
        message: what is sent on each call; None: nothing.
    """
    async with grpc.aio.insecure_channel(target.grpc, CHANNEL_OPTIONS) as channel:
        method: Any = channel.stream_stream(path, bytes, bytes)
        calls = [method(metadata=metadata(target)) for _ in range(number)]
        sends = [asyncio.create_task(_send(each, message)) for each in calls]
        await asyncio.wait(sends, timeout=_OPEN_S)
        await asyncio.sleep(target.hold_s)
        states = [(await each.code()).name if each.done() else "held" for each in calls]
        for call, send in zip(calls, sends, strict=True):
            call.cancel()
            send.cancel()
        await asyncio.gather(*sends, return_exceptions=True)
        return states


async def _send(call: grpc.aio.StreamStreamCall[bytes, bytes], message: bytes | None) -> None:
    await call.wait_for_connection()
    if message is not None:
        await call.write(message)
        await call.done_writing()
