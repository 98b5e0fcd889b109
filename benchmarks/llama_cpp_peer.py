"""llama-cpp-python's server with its model swap, under the same traces; for orientation, if it is installed.

The server holds one model at a time and loads another when a request names it. It takes text, so each prompt
has as many words as the trace has ids; outputs may end early, because it cannot be told to ignore the end of
sequence.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

import httpx

from benchmarks.replay import Summary, Targets, Timing, summarize
from benchmarks.traces import TraceRequest, TraceSpec, draw_trace
from mooring.errors import OperatorError

__all__ = ["Peer", "measure_peer"]

_START_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Peer:
    """The report's sentence about the peer, and its curve by requests per second; the curve is empty if it
    was not measured."""

    description: str
    curve: dict[float, Summary] = field(default_factory=dict)


def measure_peer(
    scratch: Path,
    gguf: Path | None,
    trace: TraceSpec,
    targets: Targets,
    loads_per_s: Sequence[float],
    patience_s: float,
) -> Peer:
    """Replays the trace at each load.

    Args:
        gguf: one model file, served under each name of the trace.
        loads_per_s: requests per second.

    Raises:
        OperatorError: llama-cpp-python is installed and its server does not start.
    """
    if find_spec("llama_cpp") is None:
        return Peer("Not measured: llama-cpp-python is not installed.")
    if gguf is None:
        return Peer("Not measured: no GGUF file was given (`--peer-gguf`).")
    curve = {}
    with _server(scratch, gguf, trace.models) as url:
        for load_per_s in loads_per_s:
            spec = replace(trace, requests_per_s=load_per_s)
            timings = asyncio.run(_replay(url, draw_trace(spec), patience_s))
            curve[spec.requests_per_s] = summarize(timings, targets, spec.duration_s)
    lines = [
        f"- {load:.2f} requests/s: {100 * each.attainment:.0f} % attained, goodput {each.goodput_per_s:.2f}/s, "
        f"p99 TTFT {each.ttft_p99_s:.2f} s, {each.num_failed} failed"
        for load, each in curve.items()
    ]
    intro = f"{gguf.name} under three names, another model than ours above, and by its own engine:"
    return Peer("\n".join([intro, "", *lines]), curve)


@contextmanager
def _server(scratch: Path, gguf: Path, names: Sequence[str]) -> Iterator[str]:
    port = _free_port()
    config = scratch / "llama-cpp.json"
    models = [{"model": str(gguf), "model_alias": name, "n_ctx": 512, "verbose": False} for name in names]
    # By default a new request ends the one that runs.
    settings = {"host": "127.0.0.1", "port": port, "interrupt_requests": False, "models": models}
    config.write_text(json.dumps(settings))
    log_path = scratch / "llama-cpp.log"
    with log_path.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "llama_cpp.server", "--config_file", str(config)],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _await_ready(url, process, log_path)
        yield url
    finally:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _await_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/v1/models", timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise OperatorError(f"llama-cpp-python's server did not start:\n{log.read_text()[-2000:]}")


async def _replay(url: str, requests: Sequence[TraceRequest], patience_s: float) -> list[Timing]:
    started_s = time.monotonic()
    last_s = max((request.at_s for request in requests), default=0.0)
    timeout = httpx.Timeout(last_s + patience_s)
    async with httpx.AsyncClient(timeout=timeout, limits=httpx.Limits(max_connections=None)) as client:

        async def run(request: TraceRequest) -> Timing:
            timing = Timing()
            due_s = started_s + request.at_s
            await asyncio.sleep(due_s - time.monotonic())
            body = {
                "model": request.model,
                "prompt": " word" * len(request.prompt_token_ids),
                "max_tokens": request.max_tokens,
                "temperature": 0.0,
                "stream": True,
            }
            try:
                async with client.stream("POST", f"{url}/v1/completions", json=body) as response:
                    response.raise_for_status()
                    async for line in response.aiter_lines():
                        if line.startswith("data: {"):
                            timing.last_s = time.monotonic() - due_s
                            timing.first_s = timing.last_s if timing.first_s is None else timing.first_s
                            timing.num_tokens += 1
            except httpx.HTTPError as error:
                timing.error = repr(error)
            timing.end_s = time.monotonic() - due_s
            return timing

        return await asyncio.gather(*(run(request) for request in requests))
