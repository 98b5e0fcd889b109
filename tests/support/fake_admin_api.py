"""A server's admin API as the web UI sees it: with a state that a test sets, and every call written down."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

__all__ = ["FakeAdminApi"]

ADMIN_KEY = "the-admin-key"


class FakeAdminApi:
    """Serves in a thread of its own while it is entered.

    Attributes:
        state: the live state; ``publish`` sends what a test has changed of it.
        answers: what GET answers, by path below ``/admin/v1/``.
        calls: method, path and body of each call but those of the live feed.
        admin_key: the only key that is taken.
        wants_keys: whether calls below ``/v1`` are refused that show no key.
        answer_s: seconds that an answer takes to begin.
        num_tokens: of each completion, 50 in a second.
        live_status: what the live feed answers.
        num_readers: readers of the live feed.
        num_asked: how often the live feed was asked for.
    """

    def __init__(self, state: dict[str, Any] | None = None, answers: dict[str, Any] | None = None) -> None:
        self.state = state if state is not None else {"server": {"version": "1"}}
        self.answers = answers or {}
        self.calls: list[tuple[str, str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.admin_key = ADMIN_KEY
        self.wants_keys = False
        self.answer_s = 0.0
        self.num_tokens = 1000
        self.live_status = 200
        self.num_asked = 0
        self.num_readers = 0
        self.num_cancelled = 0
        self.url = ""
        self._seq = 1
        self._readers: list[asyncio.Queue[bytes | None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    @contextlib.contextmanager
    def running(self) -> Iterator[FakeAdminApi]:
        """Serves on a free port."""
        app = Starlette(
            routes=[
                Route("/admin/v1/live", self._live),
                Route("/{path:path}", self._call, methods=["GET", "POST", "PATCH", "DELETE"]),
            ]
        )
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = uvicorn.Server(
            uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield self
        finally:
            self.end_streams()
            server.should_exit = True
            thread.join(10)
            listener.close()

    def publish(self, patch: dict[str, Any], *, skip: int = 0) -> None:
        """Sends a patch; ``skip`` sequence numbers are left out before it."""
        self._seq += 1 + skip
        self._send("patch", {"seq": self._seq, "patch": patch})

    def tell(self, event: dict[str, Any]) -> None:
        """Sends an event of the journal."""
        self._send("event", event)

    def end_streams(self) -> None:
        """Ends all streams of the live feed."""
        self._put(None)

    def _send(self, name: str, data: Any) -> None:
        self._put(f"event: {name}\ndata: {json.dumps(data)}\n\n".encode())

    def _put(self, frame: bytes | None) -> None:
        if self._loop is not None:
            for reader in list(self._readers):
                self._loop.call_soon_threadsafe(reader.put_nowait, frame)

    def _is_allowed(self, request: Request) -> bool:
        return request.headers.get("authorization") == f"Bearer {self.admin_key}"

    async def _live(self, request: Request) -> Response:
        if not self._is_allowed(request):
            return _error(401, "invalid_api_key")
        self.num_asked += 1
        if self.live_status != 200:
            return _error(self.live_status, "internal_error")
        return StreamingResponse(self._frames(), media_type="text/event-stream")

    async def _frames(self) -> AsyncIterator[bytes]:
        self._loop = asyncio.get_running_loop()
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._readers.append(queue)
        self.num_readers += 1
        snapshot = {"seq": self._seq, "epoch": "e", "state": self.state}
        try:
            yield f"event: snapshot\nid: {self._seq}\ndata: {json.dumps(snapshot)}\n\n".encode()
            while True:
                try:
                    frame = await asyncio.wait_for(queue.get(), 0.2)
                except TimeoutError:
                    frame = b": nothing new\n\n"
                if frame is None:
                    return
                yield frame
        finally:
            self._readers.remove(queue)
            self.num_readers -= 1

    async def _call(self, request: Request) -> Response:
        path = request.path_params["path"]
        body = await request.body()
        self.calls.append((request.method, f"/{path}", json.loads(body) if body else None))
        self.headers.append(dict(request.headers))
        below = path.removeprefix("admin/v1/")
        if path.startswith("admin/") and not self._is_allowed(request):
            return _error(401, "invalid_api_key")
        if self.wants_keys and path.startswith("v1/") and "authorization" not in request.headers:
            return _error(401, "invalid_api_key")
        await asyncio.sleep(self.answer_s)
        if below.endswith("completions"):
            return StreamingResponse(self._tokens(), media_type="text/event-stream")
        if request.method == "GET":
            return JSONResponse(self.answers.get(below, []), headers={"x-mooring-next": "cursor"})
        return JSONResponse({"done": True})

    async def _tokens(self) -> AsyncIterator[bytes]:
        try:
            for index in range(self.num_tokens):
                yield f'data: {{"choices": [{{"index": 0, "text": "{index} "}}]}}\n\n'.encode()
                await asyncio.sleep(0.02)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise


def _error(status: int, code: str) -> JSONResponse:
    return JSONResponse({"error": {"message": "No.", "code": code, "param": None}}, status)
