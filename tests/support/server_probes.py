"""What tests do to a running server: streams read piece by piece, and a look at its processes."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import psutil

from support.running_server import RunningServer

__all__ = [
    "SLOW_STEP",
    "Stream",
    "check_all_gone",
    "check_idle",
    "check_no_fault",
    "complete",
    "family",
    "metric",
]

SLOW_STEP = {"MOORING_NULL__STEP_TIME_S": "0.02"}


class Stream:
    """A streamed completion, read as far as the test wants."""

    def __init__(self, server: RunningServer, max_tokens: int, model: str = "a", key: str = "none") -> None:
        self.text = ""
        self.error: dict[str, Any] | None = None
        self.done = False
        body = {"model": model, "prompt": "hello", "max_tokens": max_tokens, "stream": True}
        self._client = httpx.Client(timeout=30, headers={"authorization": f"Bearer {key}"})
        self._context = self._client.stream("POST", f"{server.http_url}/v1/completions", json=body)
        self._lines = self._context.__enter__().iter_lines()

    def read(self, num_events: int = 1 << 30) -> None:
        for line in self._lines:
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                self.done = True
                continue
            event = json.loads(line.removeprefix("data: "))
            self.error = event.get("error")
            self.text += "".join(choice["text"] for choice in event.get("choices", ()))
            num_events -= 1
            if num_events == 0:
                return

    def close(self) -> None:
        self._context.__exit__(None, None, None)
        self._client.close()


def complete(server: RunningServer, key: str | None = None) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    body = {"model": "a", "prompt": "hello", "max_tokens": 2}
    return server.client.post(f"{server.http_url}/v1/completions", json=body, headers=headers)


def family(server: RunningServer) -> list[psutil.Process]:
    """The server and all that it started."""
    process = psutil.Process(server.process.pid)
    return [process, *process.children(recursive=True)]


def check_all_gone(processes: list[psutil.Process], timeout_s: float = 5.0) -> None:
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def metric(server: RunningServer, name: str) -> float:
    """The sum of a metric over its labels."""
    lines = server.client.get(f"{server.http_url}/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name}{{"))


def check_idle(server: RunningServer, timeout_s: float = 5.0) -> None:
    """Nothing runs, nothing waits, and no KV is held; what a client has just left takes a moment to end."""
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    deadline = time.monotonic() + timeout_s
    while any(busy := {name: metric(server, name) for name in names}.values()):
        assert time.monotonic() < deadline, busy
        time.sleep(0.05)


def check_no_fault(server: RunningServer) -> None:
    """Nothing in the server's log is a bug."""
    log = server.log()
    assert "Traceback" not in log, log[log.index("Traceback") :]
