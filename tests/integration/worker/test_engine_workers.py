"""Workers that are started when a deployment needs them, and end with the deployment that they were for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engines.config import WorkerSpec
from engines.kinds import KINDS
from engines.supervise.supervisor import Supervisor
from memory_manager.config import DeviceBudget
from mooring.config import load_settings
from mooring.errors import ConfigurationError
from mooring.server import engine_workers
from mooring.server.engine_workers import EngineWorkers
from mooring.server.worker_specs import worker_specs
from mooring.units import MIB

pytestmark = pytest.mark.integration

ENDS_AT_ONCE = ("-c", "raise SystemExit(7)")
SHARED = KINDS["null"]
OWN = replace(SHARED, own_worker=True)


@asynccontextmanager
async def started() -> AsyncIterator[tuple[EngineWorkers, Supervisor]]:
    supervisor = Supervisor(lambda client: None, lambda worker_id: None)
    budgets = [DeviceBudget("cpu:0", 64 * MIB), DeviceBudget("cpu:1", 64 * MIB)]
    try:
        yield EngineWorkers(load_settings(), budgets, {}, supervisor, 0.1), supervisor
    finally:
        await supervisor.stop(0.0)


def half_broken_specs(*args: Any) -> list[WorkerSpec]:
    first, second = worker_specs(*args)
    return [first, replace(second, program=ENDS_AT_ONCE)]


def ids(supervisor: Supervisor) -> set[str]:
    return {each.worker_id for each in supervisor.workers()}


async def test_deployments_share_the_workers_of_an_engine(tmp_path: Path) -> None:
    async with started() as (workers, supervisor):
        engine = workers.engine(SHARED, tmp_path)
        assert not ids(supervisor)
        await asyncio.gather(engine.start("a"), engine.start("b"))
        assert ids(supervisor) == {"null-0", "null-1"}
        assert supervisor.client("null-1").device == "cpu:1"
        await engine.stop("a")
        assert supervisor.client("null-0").serves == ""


async def test_a_deployments_own_workers_end_with_it(tmp_path: Path) -> None:
    async with started() as (workers, supervisor):
        engine = workers.engine(OWN, tmp_path)
        await asyncio.gather(engine.start("a"), engine.start("b"), engine.start("a"))
        assert ids(supervisor) == {"null-a-0", "null-a-1", "null-b-0", "null-b-1"}
        assert supervisor.client("null-b-0").serves == "b"
        await engine.stop("a")
        while ids(supervisor) != {"null-b-0", "null-b-1"}:  # noqa: ASYNC110 - it ends in its own time
            await asyncio.sleep(0.01)
        await engine.start("a")
        assert "null-a-0" in ids(supervisor)


async def test_an_engine_that_cannot_be_started_leaves_nothing_and_may_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started() as (workers, supervisor):
        engine = workers.engine(OWN, tmp_path)
        with monkeypatch.context() as patched:
            patched.setattr(engine_workers, "worker_specs", half_broken_specs)
            with pytest.raises(ConfigurationError, match="status 7"):
                await engine.start("a")
        assert not ids(supervisor)
        await engine.start("a")
        assert ids(supervisor) == {"null-a-0", "null-a-1"}
