"""What a device's queue shows of those who wait, and for how long a model was away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from support.simulated_house import CONFIG, House, house, virtually
from support.simulated_memory import deployment

from memory_manager.fleet.queue_view import NUM_LISTED
from memory_manager.fleet.status import DeviceQueueStatus
from memory_manager.policy.residency import Residency
from memory_manager.policy.wait_reason import WaitReason

ROOMY = replace(CONFIG, max_waiting_requests=100)


async def settled() -> None:
    """Lets everything happen that needs no time."""
    for _ in range(5):
        await asyncio.sleep(0)


def queue_of(h: House) -> DeviceQueueStatus:
    (found,) = h.manager.snapshot().queues
    return found


@asynccontextmanager
async def waiting(h: House, *requests: dict[str, Any]) -> AsyncIterator[None]:
    """Requests that have come and wait, or are served; they are given up at the end."""
    tasks = []
    for each in requests:
        tasks.append(asyncio.create_task(h.manager.acquire(**each)))
        await settled()
    yield
    for task in tasks:
        if task.done():
            task.result().release()
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@virtually
async def test_an_empty_queue_shows_nobody() -> None:
    async with house() as h:
        found = queue_of(h)
        assert (found.device, found.shares, found.first, found.predicted_s) == ("cpu", (), (), None)
        assert (found.num_in_time, found.num_late, found.oldest_s, found.jain_index) == (0, 0, 0.0, 1.0)


@virtually
async def test_who_waits_is_told_in_the_order_of_service_with_reasons() -> None:
    async with house(ROOMY) as h:
        h.add_worker(max_step_tokens=100)
        await h.bring_in("a")
        h.manager.upsert_deployment(deployment("b"))
        held = [await h.manager.acquire("a", num_prompt=110, tenant="t", priority=3) for _ in range(2)]
        now_s = asyncio.get_running_loop().time()
        asked: list[dict[str, Any]] = [
            {"name": "a", "tenant": "late", "deadline_s": now_s - 1},
            {"name": "a", "tenant": "t", "deadline_s": now_s + 9},
            {"name": "a", "tenant": "urgent", "priority": 3, "deadline_s": now_s + 40},
            {"name": "b", "tenant": "t", "deadline_s": now_s + 30},
        ]
        async with waiting(h, *asked):
            while h.residency("b") is not Residency.LOADING:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            gone_s = asyncio.get_running_loop().time() - now_s
            found = queue_of(h)
            told = [(each.deployment, each.tenant, each.reason) for each in found.first]
            assert told[0] == ("a", "urgent", WaitReason.PROMPT_TOKENS), "the first waits for its worker"
            assert told[1] == ("a", "late", WaitReason.LATE), "its tenant has had less"
            assert set(told[2:]) == {("a", "t", WaitReason.BEHIND), ("b", "t", WaitReason.LOADING)}
            assert [each.is_late for each in found.first] == [False, True, False, False]
            assert [each.due_in_s for each in found.first[:2]] == [
                pytest.approx(30 - gone_s),  # the end of its patience
                pytest.approx(-1 - gone_s),
            ]
            assert (found.num_in_time, found.num_late) == (3, 1)
            assert [(each.deployment, each.tenant, each.priority) for each in found.shares] == [
                *(("a", "late", 0), ("a", "t", 0), ("a", "urgent", 3), ("b", "t", 0)),
            ]
            before = found.first
            assert queue_of(h).first == before, "to look changes nothing"
            for each in held:
                each.note_tokens(1)
            await settled()
            assert [each.deployment for each in queue_of(h).first] == ["b"], "the others were served"
        for each in held:
            each.release()


@virtually
async def test_how_long_they_have_waited_and_no_more_than_some_one_by_one() -> None:
    async with house(ROOMY) as h:
        h.add_worker(max_sequences=1)
        await h.bring_in("a")
        with await h.manager.acquire("a"):
            async with waiting(h, {"name": "a", "tenant": "first"}):
                await asyncio.sleep(2)
                async with waiting(h, *({"name": "a", "tenant": "second"} for _ in range(NUM_LISTED))):
                    found = queue_of(h)
                    assert (len(found.first), found.num_in_time) == (NUM_LISTED, NUM_LISTED + 1)
                    assert {each.reason for each in found.first} == {WaitReason.SLOTS}
                    assert found.oldest_s == pytest.approx(2)
                    waits_s = {each.tenant: each.oldest_s for each in found.shares}
                    assert waits_s == {"first": pytest.approx(2), "second": pytest.approx(0)}


@virtually
async def test_a_model_that_comes_or_leaves_is_the_reason() -> None:
    async with house(ROOMY) as h:
        h.manager.upsert_deployment(deployment("a"))

        def reason() -> WaitReason:
            (only,) = queue_of(h).first
            return only.reason

        async with waiting(h, {"name": "a"}):
            assert reason() is WaitReason.ASLEEP, "there is no worker"
            h.add_worker()
            await settled()
            assert reason() is WaitReason.LOADING
            while queue_of(h).first:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        asleep = asyncio.create_task(h.manager.sleep("a"))
        await settled()
        async with waiting(h, {"name": "a"}):
            assert reason() is WaitReason.LEAVING
            await asleep
            await settled()
            assert reason() is WaitReason.WAKING


@virtually
async def test_kv_that_others_will_need_is_the_reason() -> None:
    async with house(ROOMY) as h, AsyncExitStack() as stack:
        h.add_worker()
        h.manager.upsert_deployment(deployment("a", kv_pages=0, longest_pages=6))
        for _ in range(3):
            ticket = stack.enter_context(await h.manager.acquire("a", num_prompt=64, most_output=64))
            ticket.note_tokens(1)
        async with waiting(h, {"name": "a", "num_prompt": 64, "most_output": 64}):
            (only,) = queue_of(h).first
            assert only.reason is WaitReason.KV


@virtually
async def test_fairness_is_told_of_those_that_wait_or_are_served() -> None:
    async with house(ROOMY) as h:
        h.add_worker()
        await h.bring_in("a")
        for _ in range(3):  # its steps are measured, so service is counted
            h.manager.note_step("a/0", [64], 0.1)
        one = await h.manager.acquire("a", tenant="one", num_prompt=64)
        one.note_tokens(1)
        assert queue_of(h).jain_index == pytest.approx(1), "it is alone"
        two = await h.manager.acquire("a", tenant="two", num_prompt=640)
        two.note_tokens(1)
        assert 0.5 < queue_of(h).jain_index < 0.9
        two.release()
        assert queue_of(h).jain_index == pytest.approx(1), "who has gone counts no more"
        one.release()


@virtually
async def test_the_time_of_a_models_absence_is_counted() -> None:
    async with house() as h:
        h.add_worker()
        assert h.manager.away_s("a") == 0.0
        await h.bring_in("a")
        before_s = h.manager.away_s("a")
        assert before_s > 0, "it was loaded"
        await asyncio.sleep(5)
        assert h.manager.away_s("a") == before_s
        await h.manager.sleep("a")
        asleep_s = h.manager.away_s("a")
        await asyncio.sleep(5)
        assert h.manager.away_s("a") == pytest.approx(asleep_s + 5)
        (await h.manager.acquire("a")).release()
        after_s = h.manager.away_s("a")
        await asyncio.sleep(5)
        assert h.manager.away_s("a") == after_s
        h.manager.remove_deployment("a")
        assert h.manager.away_s("a") == 0.0
