"""A real server's readers, and the steps of its worker that stop them."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest
from support.core_signals import is_clear
from support.null_worker import until

from benchmarks.random_models import TINY_SHAPE, make_random_models
from memory_manager.cores import CoreSignal
from mooring.config import load_settings
from mooring.server.server import Server

pytestmark = pytest.mark.integration


@pytest.mark.slow
async def test_readers_wait_for_the_steps_that_stop_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = make_random_models(tmp_path / "models", TINY_SHAPE, ("streaming", "read"), "fp32")
    models = [{"name": name, "source": str(folder)} for name, folder in folders.items()]
    flags = {"data_dir": tmp_path, "models": models, "dtype": "float32", "memory_budget": "64MiB"}
    settings = load_settings({**flags, "http_port": 0, "grpc_port": 0})
    signal = CoreSignal.make()
    monkeypatch.setattr("mooring.server.server.CoreSignal.make", lambda: signal)
    async with AsyncExitStack() as stack:
        server = await Server.start(settings, stack)
        await server.serve_models()
        key = (tmp_path / "admin.key").read_text().strip()
        client = httpx.AsyncClient(
            base_url=server.addresses["http"], headers={"authorization": f"Bearer {key}"}, timeout=60
        )
        await stack.enter_async_context(client)

        def complete(max_tokens: int) -> asyncio.Task[httpx.Response]:
            body = {"model": "streaming", "prompt": [5, 17, 203], "max_tokens": max_tokens}
            return asyncio.create_task(client.post("/v1/completions", json={**body, "ignore_eos": True}))

        async def wanted() -> bool:
            return signal.take_wanted()

        async def stopped() -> bool:
            return not is_clear(signal)

        async def clear() -> bool:
            return is_clear(signal)

        assert (await complete(1)).status_code == 200
        await until(clear)  # nobody steps
        signal.take_wanted()
        signal.stop()
        waking = asyncio.create_task(client.post("/admin/v1/deployments/read/wake"))
        await until(wanted)
        signal.clear()
        assert (await waking).status_code == 204
        answering = complete(400)
        await until(stopped)
        assert (await answering).status_code == 200
        await until(clear)
