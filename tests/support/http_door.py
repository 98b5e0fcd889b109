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

from mooring.config import TlsFiles
from mooring.server.connection_limits import ConnectionLimits
from mooring.server.door_config import HttpLimits
from mooring.server.doors import http_door
from mooring.units import KIB, MIB
from router.doors.http.access import OperatorKeys
from router.doors.http_app import create_app
from router.doors.kserve.core import KServe
from router.doors.kserve.repository import IndexEntry
from router.doors.kserve.rest import create_kserve_routes
from router.intake import Intake
from router.services import RouterServices
from support.kserve_doors import ADMIN_KEY, MemoryRepository
from support.router_doors import Script, ScriptedSource, served_model, services


@dataclass
class HttpDoor:
    """A running door, which serves one model as ``org/tiny``."""

    url: str
    source: ScriptedSource
    services: RouterServices

    def client(self, **options: Any) -> openai.AsyncOpenAI:
        settings = {"base_url": f"{self.url}/v1", "api_key": "any", "max_retries": 0, **options}
        return openai.AsyncOpenAI(**settings)

    async def in_flight(self, num_bytes: int) -> None:
        """Waits until that many bytes of bodies are in flight."""
        async with asyncio.timeout(20):
            while self.services.in_flight.body_bytes != num_bytes:  # noqa: ASYNC110 (it sets no event)
                await asyncio.sleep(0.005)

    async def closed(self) -> None:
        """Waits until every stream was closed."""
        for stream in self.source.streams:
            await asyncio.wait_for(stream.closed.wait(), 20)


@contextlib.asynccontextmanager
async def open_door(folder: Path, script: Script, **options: Any) -> AsyncIterator[HttpDoor]:
    """Serves the model of that folder; ``options`` are those of ``support.router_doors.services``."""
    source = ScriptedSource(script)
    model = served_model("org/tiny", folder, max_model_len=96, temperature=0.5)
    given = services(source, [model], **options)
    app = create_app(given, OperatorKeys(ADMIN_KEY))
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
    task = asyncio.create_task(server.serve([listener]))
    try:
        while not server.started:  # noqa: ASYNC110 (uvicorn has a flag, not an event)
            await asyncio.sleep(0.005)
        yield HttpDoor(f"http://127.0.0.1:{listener.getsockname()[1]}", source, given)
    finally:
        server.should_exit = server.force_exit = True
        await asyncio.wait_for(task, 10)


@contextlib.asynccontextmanager
async def guarded_door(
    folder: Path,
    script: Script,
    *,
    keys: OperatorKeys | None = None,
    connections: ConnectionLimits | None = None,
    tls: TlsFiles | None = None,
    max_unread_bytes: int = 64 * MIB,
    **options: Any,
) -> AsyncIterator[HttpDoor]:
    """As ``open_door``, with the server's own connections and KServe's routes too."""
    source = ScriptedSource(script)
    model = served_model("org/tiny", folder, max_model_len=96, temperature=0.5)
    given = services(source, [model], **options)
    intake = Intake(given)
    app = create_app(given, keys or OperatorKeys(ADMIN_KEY), intake)
    kserve = KServe(given, intake, MemoryRepository([IndexEntry("org/tiny", "1", "READY")]))
    app.router.routes.extend(create_kserve_routes(kserve, max_body_bytes=given.config.max_body_bytes))
    limits = HttpLimits(
        given.config.max_body_bytes,
        max_head_bytes=64 * KIB,
        request_timeout_s=60,
        max_reader_stall_s=60,
        max_unread_bytes=max_unread_bytes,
    )
    async with http_door(app, "127.0.0.1", 0, limits, connections, tls) as url:
        yield HttpDoor(url, source, given)
