"""The order in which those who wait are given a replica, and what their tickets hold."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from support.simulated_house import BUDGET, CONFIG, house, virtually
from support.simulated_memory import deployment

from memory_manager.fleet.records import Deployment
from memory_manager.policy.residency import Residency
from mooring.errors import ModelNotFoundError, OverloadedError


@virtually
async def test_a_replica_is_given_by_priority_and_then_by_arrival() -> None:
    async with house(replace(CONFIG, max_waiting_requests=10)) as h:
        h.add_worker()
        h.manager.upsert_deployment(deployment("a"))
        served: list[str] = []

        async def ask(name: str, priority: int) -> None:
            with await h.manager.acquire("a", priority=priority):
                served.append(name)

        async with asyncio.TaskGroup() as asking:
            for name, priority in (("one", 0), ("two", 5), ("three", -1), ("four", 5), ("five", 0)):
                asking.create_task(ask(name, priority))
        assert served == ["two", "four", "one", "five", "three"]


@virtually
async def test_a_ticket_holds_the_target_of_its_request_or_the_planners_own() -> None:
    async with house() as h:
        h.add_worker()
        h.manager.upsert_deployment(deployment("a"))
        waited = await h.manager.acquire("a", tpot_target_s=0.5)
        at_once = await h.manager.acquire("a", tpot_target_s=0.25)
        usual = await h.manager.acquire("a")
        targets_s = [each.claim.tpot_target_s for each in (waited, at_once, usual)]
        assert targets_s == [0.5, 0.25, CONFIG.tpot_target_s]
        for each in (waited, at_once, usual):
            each.release()


@virtually
async def test_those_that_wait_and_those_that_are_parked_count_by_the_highest_priority_among_them() -> None:
    async with house() as h:
        h.add_worker()
        for name in "ab":
            h.manager.upsert_deployment(deployment(name, weights_pages=20))
        parked = [await h.manager.acquire("a", priority=each) for each in (-2, 3, 1)]
        (a,) = (each for each in h.manager._deployments.values() if each.spec.name == "a")
        assert a.demand() is None
        with await h.manager.acquire("b"):
            assert h.residency("a") is Residency.WARM
            waiting = asyncio.create_task(h.manager.acquire("a", priority=5))
            await asyncio.sleep(0)
            assert priority_of(a) == 5
            waiting.cancel()
            await asyncio.wait([waiting])
            for ticket, left in ((parked[1], 1), (parked[2], -2)):
                assert priority_of(a) == ticket.claim.priority
                ticket.release()
                assert priority_of(a) == left
        parked[0].release()


def priority_of(deployment: Deployment) -> int | None:
    demand = deployment.demand()
    return None if demand is None else demand.priority


async def settled() -> None:
    """Lets everything happen that needs no time."""
    for _ in range(5):
        await asyncio.sleep(0)


@virtually
async def test_a_worker_is_given_only_the_prompts_that_it_can_begin() -> None:
    async with house(replace(CONFIG, max_waiting_requests=10)) as h:
        h.add_worker(max_step_tokens=100)
        await h.bring_in("a")
        begun = [await h.manager.acquire("a", num_prompt=110) for _ in range(2)]
        third = asyncio.create_task(h.manager.acquire("a", num_prompt=80))
        await settled()
        assert not third.done()
        assert h.manager.status("a").num_waiting == 1  # type: ignore[union-attr]
        begun[0].note_tokens(1)  # its prompt is computed
        for each in (*begun, await third):
            each.release()


@virtually
async def test_a_replica_has_no_more_sequences_than_its_worker_runs() -> None:
    async with house(replace(CONFIG, max_waiting_requests=10)) as h:
        h.add_worker(max_sequences=3)
        await h.bring_in("a")
        pair = await h.manager.acquire("a", num_choices=2)
        one = await h.manager.acquire("a")
        waiting = asyncio.create_task(h.manager.acquire("a"))
        await settled()
        assert not waiting.done()
        pair.release()
        (await waiting).release()
        one.release()


@virtually
async def test_kv_that_running_requests_will_need_is_not_given_to_another() -> None:
    async with house(replace(CONFIG, max_waiting_requests=10)) as h:
        h.add_worker()
        h.manager.upsert_deployment(deployment("a", kv_pages=0, longest_pages=6))  # 128 tokens
        held = []
        for _ in range(3):  # each is to grow to 6 pages, of 20 that there are
            held.append(await h.manager.acquire("a", num_prompt=64, most_output=64))
            held[-1].note_tokens(1)
        waiting = asyncio.create_task(h.manager.acquire("a", num_prompt=64, most_output=64))
        await settled()
        assert not waiting.done()
        held.pop().release()
        for each in (*held, await waiting):
            each.release()


@virtually
async def test_the_lease_grows_for_those_that_wait_in_the_queue() -> None:
    async with house(replace(CONFIG, max_waiting_requests=10)) as h:
        h.add_worker()
        await h.bring_in("b")
        h.manager.upsert_deployment(deployment("a", kv_pages=0, longest_pages=4))
        asking = [
            asyncio.create_task(h.manager.acquire("a", num_prompt=64, most_output=64)) for _ in range(4)
        ]
        for each in asking:  # "b" leaves its room to them
            (await asyncio.wait_for(each, 60)).note_tokens(1)
        assert h.residency("b") is Residency.WARM
        for each in asking:
            each.result().release()


@virtually
async def test_a_prompt_counts_as_far_as_it_is_not_computed() -> None:
    async with house(replace(CONFIG, max_waiting_requests=10)) as h:
        h.add_worker(max_step_tokens=100)
        await h.bring_in("a")
        long = await h.manager.acquire("a", num_prompt=300)
        waiting = asyncio.create_task(h.manager.acquire("a", num_prompt=10))
        await settled()
        h.manager.note_step(long.replica_id, [100], 0.1)
        await settled()
        assert not waiting.done()
        h.manager.note_step(long.replica_id, [1, 100], 0.1)
        await settled()
        for each in (long, await waiting):
            each.release()


@virtually
async def test_each_choice_is_charged_and_so_is_a_prompt_without_tokens() -> None:
    async with house(replace(CONFIG, max_waiting_requests=10)) as h:
        h.add_worker()
        await h.bring_in("a")
        for tenant, num_choices in (("one", 1), ("eight", 8)):
            with await h.manager.acquire("a", tenant=tenant, num_choices=num_choices) as ticket:
                for number in range(1, 101):
                    ticket.note_tokens(number)
        (await h.manager.acquire("a", tenant="gone", num_prompt=10_000)).release()
        (line,) = h.manager._admission._lines.values()
        service_s = line.counters.services_s()
        num_more = 99 * 7
        costs = next(iter(h.manager._deployments.values())).costs
        assert service_s["eight"] - service_s["one"] == pytest.approx(num_more * costs.decode_s, rel=0.05)
        assert service_s["gone"] >= costs.seconds(0, 10_000)


@virtually
async def test_who_waits_for_a_deployment_that_is_there_anew_is_served() -> None:
    async with house(replace(CONFIG, max_waiting_requests=10)) as h:
        h.add_worker(max_sequences=1)
        await h.bring_in("a")
        held = await h.manager.acquire("a")
        old = asyncio.create_task(h.manager.acquire("a"))
        await settled()
        h.manager.remove_deployment("a")
        h.manager.upsert_deployment(deployment("a"))
        new = h.manager.acquire("a")
        given = new.send(None)  # it waits before the old one has heard that its deployment is gone
        await settled()
        assert old.done()
        with pytest.raises(ModelNotFoundError):
            old.result()
        held.release()
        assert given is not None
        await asyncio.wait_for(given, 60)
        new.close()
        given.result().release()


@virtually
async def test_a_request_that_has_to_wait_for_others_to_end_is_let_in_if_its_time_is_long() -> None:
    async with house(replace(CONFIG, max_waiting_requests=10)) as h:
        h.add_worker(max_sequences=1)
        await h.bring_in("a")
        now_s = asyncio.get_running_loop().time()
        for _ in range(9):  # outputs of 20 tokens
            with await h.manager.acquire("a") as ticket:
                for number in range(1, 21):
                    ticket.note_tokens(number)
        held = await h.manager.acquire("a", deadline_s=now_s + 1.0, refuses_miss=True)
        with pytest.raises(OverloadedError) as refused:
            await h.manager.acquire("a", deadline_s=now_s + 1.0, refuses_miss=True)
        wait_s = refused.value.predicted_wait_s
        assert wait_s is not None
        long = h.manager.acquire("a", deadline_s=now_s + 20 * wait_s, refuses_miss=True)
        waiting = asyncio.create_task(long)
        await settled()
        assert not waiting.done()
        held.release()
        (await waiting).release()


@virtually
async def test_what_cannot_begin_in_time_is_refused_if_its_class_says_so() -> None:
    async with house(replace(CONFIG, max_waiting_requests=10)) as h:
        h.add_worker()
        await h.bring_in("a")
        await h.manager.sleep("a")
        now_s = asyncio.get_running_loop().time()
        with pytest.raises(OverloadedError) as refused:
            await h.manager.acquire("a", deadline_s=now_s + 1e-4, refuses_miss=True)
        assert refused.value.code == "slo_unattainable"
        assert refused.value.predicted_wait_s is not None
        assert refused.value.predicted_wait_s > 1e-4
        assert h.residency("a") is Residency.WARM
        with await h.manager.acquire("a", deadline_s=now_s + 1e-4) as ticket:  # it waits behind others
            assert ticket.predicted_ttft_s == pytest.approx(refused.value.predicted_wait_s, rel=0.5)
        with await h.manager.acquire("a", deadline_s=now_s, refuses_miss=True, again=True):
            pass  # it was let in before


@virtually
async def test_tenants_of_one_priority_share_by_what_they_have_had() -> None:
    async with house(replace(CONFIG, max_waiting_requests=50)) as h:
        h.add_worker(max_sequences=1)
        await h.bring_in("a")
        served: list[str] = []

        async def ask(tenant: str, weight: float) -> None:
            with await h.manager.acquire("a", tenant=tenant, weight=weight) as ticket:
                served.append(tenant)
                for number in range(1, 6):
                    ticket.note_tokens(number)
                    await asyncio.sleep(0.01)

        async with asyncio.TaskGroup() as asking:
            for _ in range(12):
                asking.create_task(ask("greedy", 1.0))
            for _ in range(6):
                asking.create_task(ask("modest", 1.0))
        assert served[:12].count("modest") == pytest.approx(6, abs=1)


@virtually
async def test_who_waits_goes_to_whichever_device_has_a_replica_first() -> None:
    async with house(replace(CONFIG, max_waiting_requests=10), cpu=BUDGET, other=BUDGET) as h:
        h.add_worker("other")
        h.manager.upsert_deployment(deployment("a"))
        (await asyncio.wait_for(h.manager.acquire("a"), 60)).release()
        assert [each.worker_id for each in h.workers] == ["worker-other"]
