"""Two workers share one device: each holds its own leases and no more, by the system's own count of their pages."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import pytest
from support.null_worker import until
from support.torch_engines import tiny_model

from engines.api import SamplingParams
from engines.checkpoint.model_config import kv_groups
from engines.config import WorkerSpec
from engines.supervise.supervisor import Supervisor
from memory_manager.config import DeviceBudget, ManagerConfig
from memory_manager.fleet.controller import MemoryManager
from memory_manager.host.cache import HostCache
from memory_manager.kv_spec import PAGE_BYTES, kv_bytes_for_tokens, round_to_pages
from memory_manager.ports import ArtifactRef, DeploymentSpec
from mooring.policy import DeploymentPolicy
from mooring.units import MIB
from router.dispatch.dispatch import Dispatcher
from router.request.request import GenerationRequest

pytestmark = pytest.mark.integration

MAX_MODEL_LEN = 128
BUDGET_BYTES = 16 * PAGE_BYTES


def physical_bytes(pid: int) -> int:
    """Bytes of memory behind a worker's arena, as the system counts them; none once it is gone."""
    total_bytes = 0
    with contextlib.suppress(FileNotFoundError):
        for each in Path(f"/proc/{pid}/fd").iterdir():
            if os.readlink(each).startswith("/memfd:mooring-arena"):
                total_bytes += each.stat().st_blocks * 512
    return total_bytes


async def test_the_device_never_holds_more_than_its_budget(tmp_path: Path) -> None:
    model = tiny_model("llama")
    weights = tmp_path / "weights.bin"
    weights.write_bytes(model.packed)
    num_bytes = len(model.packed)
    cache = HostCache(64 * MIB)
    config = ManagerConfig(
        usage_poll_s=0.02,
    )
    manager = MemoryManager([DeviceBudget("cpu", BUDGET_BYTES)], cache, config)
    supervisor = Supervisor(manager.add_worker, manager.worker_lost, manager.drain_worker)
    dispatcher = Dispatcher(manager, supervisor.client)
    settings = {"cpu_wake": "copy", "num_threads": 1}  # so that weights are pages of the arena
    prompt = (5, 17, 203, 44)
    expected = model.generate(prompt, 40)
    most_bytes = 0
    pids: dict[str, int] = {}

    async def add(worker_id: str) -> None:
        await supervisor.add(WorkerSpec(worker_id, "torch", "cpu", BUDGET_BYTES, settings))
        pids[worker_id] = supervisor.client(worker_id).capabilities().pid

    async def watch() -> None:
        nonlocal most_bytes
        while True:
            most_bytes = max(most_bytes, sum(map(physical_bytes, list(pids.values()))))
            await asyncio.sleep(0.002)

    async def ask() -> None:
        sampling = SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True)
        for _ in range(3):
            stream = await dispatcher.generate(GenerationRequest("r", "m", prompt, sampling))
            chunks = [chunk async for several in stream for chunk in several]
            assert [token for chunk in chunks for token in chunk.token_ids] == expected

    def leased_bytes(worker_id: str) -> int:
        [device] = manager.snapshot().devices
        status = manager.status("m")
        assert status is not None
        weights_bytes = sum(each.lease_bytes for each in status.replicas if each.worker_id == worker_id)
        return weights_bytes + device.owners.get(f"kv:{worker_id}", 0)

    await add("one")
    watching = asyncio.create_task(watch())
    longest_bytes = round_to_pages(kv_bytes_for_tokens(kv_groups(model.config, 4), MAX_MODEL_LEN))
    artifact = ArtifactRef("m", weights, num_bytes, model.manifest.to_json())
    sizes = round_to_pages(num_bytes), 0, longest_bytes, MAX_MODEL_LEN
    manager.upsert_deployment(
        DeploymentSpec("m", artifact, *sizes, DeploymentPolicy(min_replicas=2, max_replicas=2))
    )

    async def has_all_ready() -> bool:
        return physical_bytes(pids["one"]) == BUDGET_BYTES

    await until(has_all_ready)
    await add("two")
    await asyncio.gather(*(ask() for _ in range(8)))

    async def both_hold_their_leases() -> bool:
        held = {worker_id: physical_bytes(pid) for worker_id, pid in pids.items()}
        return (
            all(0 < held[each] == leased_bytes(each) for each in pids) and sum(held.values()) == BUDGET_BYTES
        )

    await until(both_hold_their_leases)
    await asyncio.gather(*(ask() for _ in range(8)), supervisor.remove("two", grace_s=0.1))
    del pids["two"]
    await until(has_all_ready)
    assert not watching.done(), watching.exception()
    watching.cancel()
    assert most_bytes == BUDGET_BYTES
    manager.check()
    assert manager.snapshot().num_ledger_mismatches == 0
    await manager.stop()
    await supervisor.stop(grace_s=0.0)
    await cache.close()
