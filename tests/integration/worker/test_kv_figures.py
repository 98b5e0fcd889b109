"""What a worker tells of its memory adds up to what is committed, while sequences run, and when they have ended."""

from __future__ import annotations

import pytest
from support.torch_engines import EngineDriver, engine_driver, tiny_model

from engines.checkpoint.model_config import kv_groups
from memory_manager.kv_spec import PAGE_BYTES as PAGE


def check(driver: EngineDriver) -> None:
    stats = driver.engine.stats()
    found = stats.fragmentation
    blocks_bytes = sum(each.kv_live_bytes + each.kv_cached_bytes for each in stats.replicas)
    assert stats.kv_bytes == (PAGE + found.free_bytes + found.vacant_bytes + found.tail_bytes + blocks_bytes)
    assert 0 <= found.unfilled_bytes <= sum(each.kv_live_bytes for each in stats.replicas)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral"])
def test_every_committed_byte_is_told_once(kind: str) -> None:
    model = tiny_model(kind)
    groups = kv_groups(model.config, 4)
    with engine_driver() as driver:
        driver.load(model)
        check(driver)
        for number in range(6):
            driver.submit(number, [3 + number] * (5 + 29 * number), max_tokens=12)
        while driver.engine.has_work():
            driver.step()
            check(driver)
            stats = driver.engine.stats().replicas[0]
            if not stats.num_queued and len(driver.tokens) == 6:  # all prompts are computed
                most = sum(group.block_bytes * (1 if group.kind == "full" else 2) for group in groups)
                assert driver.engine.stats().fragmentation.unfilled_bytes < max(1, stats.num_running) * most
        check(driver)
        assert driver.engine.stats().fragmentation.unfilled_bytes == 0
        assert driver.engine.stats().ready_bytes > 0  # what the arena keeps for later
        driver.engine.set_memory_limit(0)  # its leases and no more
        stats = driver.engine.stats()
        assert stats.ready_bytes == stats.kv_lease_bytes - stats.kv_bytes
