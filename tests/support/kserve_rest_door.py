"""The KServe REST door on a real port around a scripted token source, for tests that need no server process."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import tritonclient.http.aio as triton

from mooring.errors import ModelUnavailableError, OverloadedError, WorkerLostError
from mooring.server.door_config import HttpLimits
from mooring.server.doors import http_door
from mooring.units import KIB
from router.doors.http.access import OperatorKeys
from router.doors.http_app import create_app
from router.doors.kserve.core import KServe
from router.doors.kserve.repository import IndexEntry
from router.doors.kserve.rest import create_kserve_routes
from router.intake import Intake
from router.request.request import GenerationRequest
from support.kserve_doors import ADMIN_KEY, MemoryRepository
from support.router_doors import (
    ScriptedSource,
    ScriptedStream,
    byte_level_tokenizer,
    one_token_a_step,
    served_model,
    services,
)

TOKENIZER = byte_level_tokenizer()
END = TOKENIZER.token_to_id("<|im_end|>")
ANSWER = "hello there 🦀!"
ANSWER_IDS = [*TOKENIZER.encode(ANSWER, add_special_tokens=False).ids, END]


def answer(request: GenerationRequest) -> ScriptedStream:
    """Says the answer, or plays out what the prompt asks for."""
    text = TOKENIZER.decode(list(request.prompt_ids))
    steps = one_token_a_step(request, ANSWER_IDS, stop_token_id=END)
    if "fail later" in text:
        return ScriptedStream([*steps[:3], WorkerLostError("The worker died twice under it.")])
    if "fail at once" in text:
        return ScriptedStream([OverloadedError("The queue is full.", retry_after_s=2.5)])
    if "too long" in text:
        raise OverloadedError("It would take too long.", predicted_wait_s=1.2345, should_retry=False)
    if "hang" in text:
        return ScriptedStream([steps[0], *steps[1:]], pause_s=30)
    if "refuse" in text:
        raise ModelUnavailableError("The model is disabled.")
    if "predict" in text:
        return ScriptedStream(steps, predicted_ttft_s=0.125 * len(request.prompt_ids))
    if "bug" in text:
        raise ZeroDivisionError("a bug")
    return ScriptedStream(steps)


@dataclass
class RestDoor:
    url: str
    source: ScriptedSource
    repository: MemoryRepository

    def forget(self) -> None:
        """What earlier tests did."""
        self.source.requests.clear()
        self.source.streams.clear()
        self.repository.calls.clear()

    def http(self, **options: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, timeout=10, **options)

    def triton(self) -> triton.InferenceServerClient:
        return triton.InferenceServerClient(self.url.removeprefix("http://"))


@contextlib.asynccontextmanager
async def rest_door(folder: Path, **options: Any) -> AsyncIterator[RestDoor]:
    """A running server of the model ``org/tiny``; ``options`` are those of ``support.router_doors.services``."""
    source = ScriptedSource(answer)
    repository = MemoryRepository(
        [IndexEntry("org/tiny", "1", "READY"), IndexEntry("off", "3", "UNAVAILABLE", "disabled")]
    )
    given = services(source, [served_model("org/tiny", folder, max_model_len=96)], **options)
    intake = Intake(given)
    app = create_app(given, OperatorKeys(ADMIN_KEY), intake)
    max_body_bytes = given.config.max_body_bytes
    kserve = KServe(given, intake, repository)
    app.router.routes.extend(create_kserve_routes(kserve, max_body_bytes=max_body_bytes))
    async with http_door(
        app,
        "127.0.0.1",
        0,
        HttpLimits(max_body_bytes, max_head_bytes=64 * KIB, request_timeout_s=60, max_reader_stall_s=60),
    ) as url:
        yield RestDoor(url, source, repository)


def text_input(text: str = "hi", *, binary: bool = True) -> triton.InferInput:
    """The prompt as Triton's client makes it, as bytes or as JSON."""
    tensor = triton.InferInput("text_input", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([text.encode()], dtype=np.object_), binary_data=binary)
    return tensor
