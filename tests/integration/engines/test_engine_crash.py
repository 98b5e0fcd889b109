"""A worker of any engine that is killed under streams: it is seen and started again, and nothing is lost."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from support.engine_contract import ENGINES, contract_engine
from support.null_worker import until

from engines.api import SamplingParams
from engines.config import WorkerSpec
from engines.supervise.supervisor import Supervisor
from memory_manager.config import DeviceBudget
from memory_manager.fleet.controller import MemoryManager
from memory_manager.host.cache import HostCache
from mooring.units import MIB
from router.dispatch.dispatch import Dispatcher
from router.request.request import GenerationRequest

pytestmark = pytest.mark.integration

_NUM_STREAMS, _NUM_TOKENS = 8, 150
_BUDGET_BYTES = 64 * MIB


@pytest.mark.parametrize("name", ENGINES)
async def test_a_killed_worker_loses_nothing(name: str, tmp_path: Path) -> None:
    contract = contract_engine(name)
    cache = HostCache(64 * MIB)
    manager = MemoryManager([DeviceBudget("cpu", _BUDGET_BYTES)], cache)
    lost: list[str] = []

    def note_lost(worker_id: str) -> None:
        lost.append(worker_id)
        manager.worker_lost(worker_id)

    supervisor = Supervisor(manager.add_worker, note_lost)
    dispatcher = Dispatcher(manager, supervisor.client)
    sampling = SamplingParams(max_tokens=_NUM_TOKENS, temperature=0.0, ignore_eos=True)
    tokens: dict[int, list[int]] = {number: [] for number in range(2 * _NUM_STREAMS)}

    async def ask(number: int) -> None:
        prompt = (5, 6, 7, 20 + number % _NUM_STREAMS)
        stream = await dispatcher.generate(GenerationRequest(f"r{number}", "m", prompt, sampling))
        async for chunks in stream:
            for chunk in chunks:
                tokens[number] += chunk.token_ids

    async def all_have_begun() -> bool:
        return all(tokens[number] for number in range(_NUM_STREAMS, 2 * _NUM_STREAMS))

    await supervisor.add(
        WorkerSpec("one", name, "cpu", _BUDGET_BYTES, contract.settings, program=contract.program)
    )
    manager.upsert_deployment(contract.deployment("m", tmp_path))
    try:
        async with asyncio.timeout(120):
            await asyncio.gather(*(ask(number) for number in range(_NUM_STREAMS)))
            asked = [asyncio.create_task(ask(_NUM_STREAMS + number)) for number in range(_NUM_STREAMS)]
            await until(all_have_begun)
            first_pid = supervisor.client("one").capabilities().pid
            os.kill(first_pid, signal.SIGKILL)
            await asyncio.gather(*asked)
        assert lost == ["one"]
        assert supervisor.client("one").capabilities().pid != first_pid
        assert {number: len(each) for number, each in tokens.items()} == dict.fromkeys(tokens, _NUM_TOKENS)
        if contract.repeats:
            assert all(tokens[number] == tokens[_NUM_STREAMS + number] for number in range(_NUM_STREAMS))
        manager.check()
        assert manager.snapshot().num_ledger_mismatches == 0
    finally:
        await manager.stop()
        await supervisor.stop(grace_s=0.0)
        await cache.close()
