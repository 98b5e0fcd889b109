"""The KServe gRPC door around a script, and Triton's client of it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import tritonclient.grpc.aio as triton_aio

from mooring.errors import OverloadedError, WorkerLostError
from router.request import GenerationRequest
from support.kserve_doors import KServeDoor, kserve_door
from support.router_doors import ScriptedStream, byte_level_tokenizer, one_token_a_step, served_model

TOKENIZER = byte_level_tokenizer()
END = TOKENIZER.token_to_id("<|im_end|>")
ANSWER = "hello 🦀!"
ANSWER_IDS = [*TOKENIZER.encode(ANSWER, add_special_tokens=False).ids, END]


def answer(request: GenerationRequest) -> ScriptedStream:
    """Says the answer, or plays out what the prompt asks for."""
    text = TOKENIZER.decode(list(request.prompt_ids))
    steps = one_token_a_step(request, ANSWER_IDS, stop_token_id=END)
    if "full" in text:
        raise OverloadedError("The queue is full.", retry_after_s=2.5)
    if "fail later" in text:
        return ScriptedStream([*steps[:3], WorkerLostError("The worker died twice.")])
    if "bug" in text:
        raise ZeroDivisionError("a bug")
    return ScriptedStream(steps, pause_s=30 if "hang" in text else 0.02 if "slow" in text else 0)


@contextlib.asynccontextmanager
async def running_grpc(folder: Path, **options: Any) -> AsyncIterator[tuple[KServeDoor, Any]]:
    """The door of a model ``tiny``, and a client; ``options`` are those of ``support.router_doors.services``."""
    models = [served_model("tiny", folder, max_model_len=96)]
    async with (
        kserve_door(answer, models, **options) as door,
        triton_aio.InferenceServerClient(door.target) as client,
    ):
        yield door, client


async def stream(
    client: Any, *requests: dict[str, Any], timeout: float = 10, **call: Any
) -> list[tuple[Any, Any]]:
    """Sends these at once, half-closes, and gives (result, error) of every response."""

    async def requests_of() -> AsyncIterator[dict[str, Any]]:
        for request in requests:
            yield {"model_name": "tiny", **request}

    return [pair async for pair in client.stream_infer(requests_of(), stream_timeout=timeout, **call)]
