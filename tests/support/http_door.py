"""The HTTP door on a real port, over a token source by script."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import uvicorn

from router.doors.http.access import OperatorKeys
from router.doors.http_app import create_app
from support.router_doors import Script, ScriptedSource, served_model, services

ADMIN_KEY = "the admin's"


@dataclass
class HttpDoor:
    """A running door, which serves one model as ``org/tiny``."""

    url: str
    source: ScriptedSource

    def client(self, **options: Any) -> openai.AsyncOpenAI:
        settings = {"base_url": f"{self.url}/v1", "api_key": "any", "max_retries": 0, **options}
        return openai.AsyncOpenAI(**settings)

    async def closed(self) -> None:
        """Waits until every stream was closed."""
        for stream in self.source.streams:
            await asyncio.wait_for(stream.closed.wait(), 20)


@contextlib.asynccontextmanager
async def open_door(folder: Path, script: Script, **options: Any) -> AsyncIterator[HttpDoor]:
    """Serves the model of that folder; ``options`` are those of ``support.router_doors.services``."""
    source = ScriptedSource(script)
    model = served_model("org/tiny", folder, max_model_len=96, temperature=0.5)
    app = create_app(services(source, [model], **options), OperatorKeys(ADMIN_KEY))
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
    task = asyncio.create_task(server.serve([listener]))
    try:
        while not server.started:  # noqa: ASYNC110 (uvicorn has a flag, not an event)
            await asyncio.sleep(0.005)
        yield HttpDoor(f"http://127.0.0.1:{listener.getsockname()[1]}", source)
    finally:
        server.should_exit = server.force_exit = True
        await asyncio.wait_for(task, 10)
