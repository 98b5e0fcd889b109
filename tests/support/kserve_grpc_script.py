"""The KServe gRPC door around a script, and Triton's client of it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import tritonclient.grpc.aio as triton_aio

from support.kserve_doors import KServeDoor, kserve_door
from support.router_doors import served_model
from support.scripted_answer import answer


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
