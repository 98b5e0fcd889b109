"""The real controller over simulated workers, on a loop whose time is virtual."""

import asyncio
from dataclasses import replace

import pytest
from support.simulated_house import BUDGET, CONFIG, House, house, virtually
from support.simulated_memory import PAGE, SimulatedWorker, deployment

from memory_manager.config import DeviceBudget, PlannerConfig
from memory_manager.fleet.events import EventKind
from memory_manager.policy.residency import Residency
from mooring.errors import (
    ArtifactError,
    ConfigurationError,
    ConflictError,
    InsufficientMemoryError,
    ModelNotFoundError,
    ModelUnavailableError,
    OverloadedError,
    RateLimitError,
    ShuttingDownError,
)
from mooring.policy import DeploymentPolicy


@virtually
async def test_a_request_brings_its_model_and_memory_left_over_is_kv() -> None:
    async with house() as h:
        h.add_worker()
        h.manager.upsert_deployment(deployment("a"))
        with await h.manager.acquire("a") as lease:
            assert h.residency("a") is Residency.RESIDENT
            assert lease.worker_id == "worker-cpu"
            status = h.manager.snapshot().deployments[0]
            assert status.replicas[0].replica_id == lease.replica_id
            assert status.replicas[0].num_active == 1
            assert status.load_s == pytest.approx(0.15)
        await asyncio.sleep(1)
        assert h.owners() == {f"weights:{lease.replica_id}": 10, "kv:worker-cpu": 20}
        assert h.transitions("a") == [("cold", "loading"), ("loading", "resident")]


@virtually
async def test_kv_gives_way_to_a_second_model_and_a_third_takes_the_place_of_the_idle_one() -> None:
    async with house() as h:
        worker = h.add_worker()
        for name in "abc":
            h.manager.upsert_deployment(deployment(name))
        held = [await h.manager.acquire(name) for name in "ab"]
        await asyncio.sleep(5)
        held[0].release()
        started_s = asyncio.get_running_loop().time()
        held.append(await h.manager.acquire("c"))
        assert asyncio.get_running_loop().time() - started_s < 0.3
        assert [h.residency(name) for name in "abc"] == [
            Residency.WARM,
            Residency.RESIDENT,
            Residency.RESIDENT,
        ]
        # a comes back by a wake, not by a load.
        held[1].release()
        (await h.manager.acquire("a")).release()
        assert [call for call in worker.calls if call[1].startswith("a/") and call[0] != "sleep"] == [
            ("load", held[0].replica_id),
            ("wake", held[0].replica_id),
        ]
        held[2].release()


@virtually
async def test_three_models_that_are_asked_for_all_the_time_take_turns_at_the_place_of_two() -> None:
    async with house() as h:
        worker = h.add_worker()
        waits_s: list[float] = []
        now = asyncio.get_running_loop().time

        async def request(name: str) -> None:
            asked_at_s = now()
            with await h.manager.acquire(name, deadline_s=asked_at_s + 2) as ticket:
                waits_s.append(now() - asked_at_s)
                ticket.note_tokens(1)
                assert not await worker.run(ticket.replica_id, 0.3)

        async with asyncio.TaskGroup() as requests:
            for name in "abc":
                h.manager.upsert_deployment(deployment(name))
            for number in range(90):
                requests.create_task(request("abc"[number % 3]))
                await asyncio.sleep(0.7)
        assert len(waits_s) == 90
        assert sum(each <= 2 for each in waits_s) >= 85
        stays = [e.duration_s for e in h.events if e.before is Residency.RESIDENT]
        assert len(stays) >= 10
        assert min(stays) >= 0.1 - 0.01, "as long as a wake takes"


@virtually
async def test_who_gives_up_and_asks_again_comes_in_when_the_first_would_have() -> None:
    async with house(replace(CONFIG, starve_after_s=30.0)) as h:
        worker = h.add_worker()
        for name in "ab":
            h.manager.upsert_deployment(deployment(name, weights_pages=20))

        async def in_use() -> None:
            while True:
                with await h.manager.acquire("a") as ticket:
                    ticket.note_tokens(1)
                    assert not await worker.run(ticket.replica_id, 5.0)

        use = asyncio.create_task(in_use())
        await asyncio.sleep(5)
        served_at_s = 0.0
        for _ in range(9):
            try:
                async with asyncio.timeout(7):
                    with await h.manager.acquire("b", deadline_s=0.0):
                        served_at_s = asyncio.get_running_loop().time()
                        break
            except TimeoutError:
                continue
        assert 30 < served_at_s < 45
        use.cancel()


@virtually
async def test_requests_of_two_models_in_the_room_of_one_go_on_in_turns() -> None:
    async with house() as h:
        worker = h.add_worker()
        ended: list[str] = []

        async def request(name: str, runs_s: float) -> None:
            with await h.manager.acquire(name, deadline_s=2) as ticket:
                ticket.note_tokens(1)
                assert not await worker.run(ticket.replica_id, runs_s)
            ended.append(name)

        for name in "ab":
            h.manager.upsert_deployment(deployment(name, weights_pages=20))
        await asyncio.gather(request("a", 7), request("b", 3))
        assert ended == ["b", "a"]
        assert h.transitions("a") == [
            ("cold", "loading"),
            ("loading", "resident"),
            ("resident", "warm"),
            ("warm", "waking"),
            ("waking", "resident"),
        ]
        assert worker.calls.count(("load", "a/0")) == 1
        assert h.told(EventKind.DRAIN, EventKind.UNLOAD) == []


@virtually
async def test_a_ticket_that_is_given_back_while_its_request_is_parked_wakes_nobody() -> None:
    async with house() as h:
        h.add_worker()
        for name in "ab":
            h.manager.upsert_deployment(deployment(name, weights_pages=20))
        parked = await h.manager.acquire("a")
        with await h.manager.acquire("b"):
            assert h.residency("a") is Residency.WARM
            [status] = [each for each in h.manager.snapshot().deployments if each.name == "a"]
            assert (status.num_waiting, status.replicas[0].num_active) == (0, 1)
            await asyncio.sleep(1)
            parked.release()
            await asyncio.sleep(10)
            assert h.residency("b") is Residency.RESIDENT
        assert h.residency("a") is Residency.WARM


@virtually
async def test_a_disabled_model_comes_back_for_what_was_parked_and_then_sleeps() -> None:
    async with house() as h:
        worker = h.add_worker()
        for name in "ab":
            h.manager.upsert_deployment(deployment(name, weights_pages=20))
        ticket = await h.manager.acquire("a")
        (await h.manager.acquire("b")).release()
        h.manager.upsert_deployment(deployment("a", weights_pages=20, enabled=False))
        assert not await worker.run(ticket.replica_id, 1)
        assert h.residency("a") is Residency.DRAINING
        ticket.release()
        await asyncio.sleep(1)
        assert h.residency("a") is Residency.WARM


@virtually
async def test_requests_that_are_parked_are_free_when_their_worker_dies() -> None:
    async with house() as h:
        worker = h.add_worker()
        for name in "ab":
            h.manager.upsert_deployment(deployment(name, weights_pages=20))
        await h.manager.acquire("a")
        await h.manager.acquire("b")
        worker.die()
        assert not any(
            replica.num_active for each in h.manager.snapshot().deployments for replica in each.replicas
        )
        h.add_worker()
        (await h.manager.acquire("a", again=True)).release()
        (await h.manager.acquire("b", again=True)).release()


@virtually
async def test_a_cancelled_acquire_leaves_no_trace() -> None:
    async with house() as h:
        h.manager.upsert_deployment(deployment("a"))
        waits = [asyncio.ensure_future(h.manager.acquire("a")) for _ in range(3)]
        await asyncio.sleep(1)
        assert h.manager.snapshot().deployments[0].num_waiting == 3
        for each in waits:
            each.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        assert h.manager.snapshot().deployments[0].num_waiting == 0
        h.add_worker()
        await asyncio.sleep(1)
        assert h.residency("a") is Residency.COLD


@virtually
async def test_cancelled_in_the_moment_of_being_granted_gives_the_lease_back() -> None:
    async with house() as h:
        h.add_worker()
        h.manager.upsert_deployment(deployment("a"))
        waits = asyncio.ensure_future(h.manager.acquire("a"))
        await h.resident.wait()
        while h.manager.snapshot().deployments[0].num_waiting:  # noqa: ASYNC110
            await asyncio.sleep(0)
        waits.cancel()
        await asyncio.gather(waits, return_exceptions=True)
        assert h.manager.snapshot().deployments[0].replicas[0].num_active == 0


@virtually
async def test_refusals() -> None:
    async with house() as h:
        h.add_worker()
        with pytest.raises(ModelNotFoundError):
            await h.manager.acquire("a")
        h.manager.upsert_deployment(deployment("a", enabled=False))
        with pytest.raises(ModelUnavailableError, match="disabled"):
            await h.manager.acquire("a")
        h.manager.upsert_deployment(deployment("huge", weights_pages=30))
        with pytest.raises(InsufficientMemoryError, match="60 MiB of weights"):
            await h.manager.acquire("huge")
        assert "can never fit" in next(e.reason for e in h.manager.snapshot().deployments if e.name == "huge")
        with pytest.raises(ConfigurationError):
            h.manager.upsert_deployment(deployment("none", max_replicas=0))
        with pytest.raises(ConflictError):
            h.manager.add_worker(h.workers[0])
        with pytest.raises(ConfigurationError):
            h.manager.add_worker(SimulatedWorker(BUDGET, worker_id="other", device="cuda:9"))


@virtually
async def test_a_full_queue_refuses_the_next_and_stop_refuses_all() -> None:
    async with house() as h:
        h.manager.upsert_deployment(deployment("a"))
        waits = [asyncio.ensure_future(h.manager.acquire("a")) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError):
            await h.manager.acquire("a")
        await h.manager.stop()
        for each in waits:
            with pytest.raises(ShuttingDownError):
                await each
        with pytest.raises(ShuttingDownError):
            await h.manager.acquire("a")


@virtually
async def test_a_replica_with_a_full_queue_refuses_the_next_and_lets_those_go_on_that_it_had() -> None:
    async with house(replace(CONFIG, max_requests_per_replica=2)) as h:
        h.add_worker()
        await h.bring_in("a")
        held = [await h.manager.acquire("a") for _ in range(2)]
        with pytest.raises(OverloadedError, match="2 requests") as refused:
            await h.manager.acquire("a")
        assert refused.value.retry_after_s == 1
        moved = await h.manager.acquire("a", again=True)  # one of those that were let in before
        held[0].release()
        moved.release()
        (await h.manager.acquire("a")).release()
        held[1].release()


@virtually
async def test_one_tenant_does_not_fill_the_queue_of_a_resident_replica_for_all() -> None:
    async with house(replace(CONFIG, max_requests_per_replica=8)) as h:
        h.add_worker()
        await h.bring_in("a")
        held = [await h.manager.acquire("a", tenant="greedy") for _ in range(4)]
        with pytest.raises(RateLimitError, match=r"planner\.max_requests_per_replica") as refused:
            await h.manager.acquire("a", tenant="greedy")
        assert (refused.value.code, refused.value.retry_after_s) == ("tenant_queue_share", 1)
        moved = await h.manager.acquire("a", tenant="greedy", again=True)  # no newcomer
        held += [await h.manager.acquire("a", tenant="other") for _ in range(2)]
        with pytest.raises(RateLimitError):  # each takes part of what is left, and a third one finds a place
            await h.manager.acquire("a", tenant="other")
        held.append(await h.manager.acquire("a", tenant="third"))
        with pytest.raises(OverloadedError):
            await h.manager.acquire("a", tenant="fourth")
        for ticket in (moved, *held):
            ticket.release()
        (await h.manager.acquire("a", tenant="greedy")).release()


@virtually
async def test_one_tenant_does_not_fill_the_queue_of_a_model_that_others_wait_for() -> None:
    async with house(replace(CONFIG, max_waiting_requests=4)) as h:
        h.manager.upsert_deployment(deployment("a"))
        waits = [asyncio.ensure_future(h.manager.acquire("a", tenant="greedy")) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(RateLimitError, match=r"planner\.max_waiting_requests"):
            await h.manager.acquire("a", tenant="greedy")
        waits.append(asyncio.ensure_future(h.manager.acquire("a", tenant="other")))
        await asyncio.sleep(0)
        h.add_worker()
        for wait in waits:
            (await wait).release()


@virtually
async def test_removing_and_disabling_end_the_waiting_and_let_what_runs_finish() -> None:
    async with house() as h:
        for name in "ab":
            h.manager.upsert_deployment(deployment(name))
        waits = [asyncio.ensure_future(h.manager.acquire(name)) for name in "ab"]
        await asyncio.sleep(0)
        h.manager.remove_deployment("a")
        h.manager.upsert_deployment(deployment("b", enabled=False))
        with pytest.raises(ModelNotFoundError):
            await waits[0]
        with pytest.raises(ModelUnavailableError):
            await waits[1]
        worker = h.add_worker()
        h.manager.upsert_deployment(deployment("c"))
        lease = await h.manager.acquire("c")
        h.manager.remove_deployment("c")
        await asyncio.sleep(5)
        assert worker.weights_bytes == 10 * PAGE
        lease.release()
        await asyncio.sleep(1)
        assert not worker.held
        assert "artifact-c" not in h.cache.pins
        assert h.owners() == {"kv:worker-cpu": 30}


@virtually
async def test_another_artifact_gets_a_new_replica_and_another_policy_does_not() -> None:
    async with house() as h:
        h.add_worker()
        spec = deployment("a")
        h.manager.upsert_deployment(spec)
        with await h.manager.acquire("a") as old:
            h.manager.upsert_deployment(replace(spec, policy=DeploymentPolicy(priority=3)))
            with await h.manager.acquire("a") as same:
                assert same.replica_id == old.replica_id
            h.manager.upsert_deployment(replace(spec, weights_bytes=8 * PAGE))
            with await h.manager.acquire("a") as new:
                assert new.replica_id != old.replica_id
        await asyncio.sleep(1)
        assert h.owners() == {f"weights:{new.replica_id}": 8, "kv:worker-cpu": 22}


@virtually
async def test_a_failed_load_is_told_to_who_waits_and_tried_again_after_a_growing_time() -> None:
    async with house() as h:
        h.add_worker()
        h.cache.broken.add("artifact-a")
        h.manager.upsert_deployment(deployment("a"))
        for wait_s in (1, 2, 4):
            with pytest.raises(ModelUnavailableError, match="corrupt") as first:
                await h.manager.acquire("a")
            assert first.value.retry_after_s == pytest.approx(wait_s, abs=0.1)
            with pytest.raises(ModelUnavailableError, match="corrupt"):
                await h.manager.acquire("a")
            assert h.residency("a") is Residency.FAILED
            await asyncio.sleep(wait_s + 0.01)
        assert h.owners() == {"kv:worker-cpu": 30}
        h.cache.broken.clear()
        (await h.manager.acquire("a")).release()
        assert h.residency("a") is Residency.RESIDENT


@virtually
async def test_a_failed_wake_rolls_back_and_is_tried_again_for_who_waits() -> None:
    async with house() as h:
        worker = h.add_worker()
        await h.bring_in("a")
        await h.manager.sleep("a")
        worker.failing.add("wake")
        wait = asyncio.ensure_future(h.manager.acquire("a"))
        await asyncio.sleep(0.5)
        assert h.transitions("a")[-2:] == [("warm", "waking"), ("waking", "warm")]
        assert h.owners() == {"kv:worker-cpu": 30}
        worker.failing.clear()
        (await wait).release()


@virtually
async def test_a_wake_that_keeps_failing_becomes_a_load() -> None:
    async with house() as h:
        worker = h.add_worker()
        await h.bring_in("a")
        await h.manager.sleep("a")
        worker.failing.add("wake")
        with pytest.raises(ModelUnavailableError, match="wake of a/0 failed") as error:
            await h.manager.acquire("a")
        assert h.residency("a") is Residency.FAILED
        assert error.value.retry_after_s is not None
        await asyncio.sleep(error.value.retry_after_s + 0.01)
        (await h.manager.acquire("a")).release()
        assert [verb for verb, _ in worker.calls if verb in ("load", "wake")] == [
            "load",
            *["wake"] * 3,
            "load",
        ]


@virtually
async def test_bytes_that_a_worker_will_not_give_back_stay_promised() -> None:
    async with house() as h:
        worker = h.add_worker()
        h.manager.upsert_deployment(deployment("a"))
        lease = await h.manager.acquire("a")
        lease.release()
        worker.failing.add("sleep")
        with pytest.raises(ArtifactError):
            await h.manager.sleep("a")
        assert h.residency("a") is Residency.RESIDENT
        worker.failing.add("load")
        worker.failing.add("unload")
        h.manager.upsert_deployment(deployment("b"))
        with pytest.raises(ModelUnavailableError):
            await h.manager.acquire("b")
        assert h.owners() == {"weights:a/0": 10, "weights:b/1": 10, "kv:worker-cpu": 10}
        worker.failing.clear()
        await asyncio.sleep(2)
        (await h.manager.acquire("b")).release()


@virtually
async def test_who_waits_is_served_by_the_successor_of_a_lost_worker() -> None:
    async with house() as h:
        first = h.add_worker()
        for name in "ab":
            h.manager.upsert_deployment(deployment(name))
        old = await h.manager.acquire("a")
        wait = asyncio.ensure_future(h.manager.acquire("b"))
        await asyncio.sleep(0.1)
        first.die()
        await asyncio.sleep(0)
        assert h.owners() == {}
        assert h.residency("a") is Residency.WARM
        assert [each.num_active for e in h.manager.snapshot().deployments for each in e.replicas] == [0, 0]
        assert not h.cache.pins
        await asyncio.sleep(1)
        assert not wait.done()
        h.add_worker()
        (await wait).release()
        old.release()
        assert h.residency("a") is Residency.WARM
        with await h.manager.acquire("a"):
            assert h.transitions("a")[-2:] == [("warm", "waking"), ("waking", "resident")]


@virtually
async def test_a_model_that_kills_its_worker_fails_and_the_others_go_on() -> None:
    async with house() as h:
        h.manager.upsert_deployment(deployment("bad"))
        h.manager.upsert_deployment(deployment("good"))

        async def run_workers() -> None:
            while True:
                worker = h.add_worker()
                while not any(e.spec.name == "bad" for e in worker.held.values()):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                worker.die()

        supervisor = asyncio.ensure_future(run_workers())
        with pytest.raises(ModelUnavailableError, match="died 3 times"):
            await h.manager.acquire("bad")
        supervisor.cancel()
        (await h.manager.acquire("good")).release()


@virtually
async def test_operator_verbs() -> None:
    async with house() as h:
        worker = h.add_worker()
        h.manager.upsert_deployment(deployment("a", pinned=True))
        await asyncio.sleep(1)
        assert h.residency("a") is Residency.RESIDENT
        lease = await h.manager.acquire("a")
        asleep = asyncio.ensure_future(h.manager.sleep("a"))
        await asyncio.sleep(1)
        assert h.residency("a") is Residency.DRAINING
        lease.release()
        await asleep
        assert h.residency("a") is Residency.WARM
        await asyncio.sleep(5)
        assert worker.weights_bytes == 0
        await h.manager.sleep("a")
        await h.manager.wake("a")
        assert h.residency("a") is Residency.RESIDENT
        with pytest.raises(ModelNotFoundError):
            await h.manager.sleep("b")


@virtually
async def test_a_host_cache_full_of_sleepers_gives_up_the_least_recently_used() -> None:
    async with house() as h:
        h.cache.budget_bytes = 20 * PAGE
        h.add_worker()
        for name in "abc":
            await h.bring_in(name)
            await asyncio.sleep(3)
            await h.manager.sleep(name)
        assert [h.residency(name) for name in "abc"] == [Residency.COLD, Residency.WARM, Residency.WARM]


@virtually
async def test_a_replica_on_each_of_two_devices_and_requests_spread_over_them() -> None:
    async with house(**{"cpu": BUDGET, "cuda:0": BUDGET}) as h:
        h.add_worker("cpu")
        h.add_worker("cuda:0")
        h.manager.upsert_deployment(deployment("a", min_replicas=2, max_replicas=2))
        await asyncio.sleep(1)
        leases = [await h.manager.acquire("a") for _ in range(4)]
        assert sorted(each.worker_id for each in leases) == ["worker-cpu"] * 2 + ["worker-cuda:0"] * 2
        for each in leases:
            each.release()
            each.release()


@virtually
async def test_a_sleeper_moves_to_a_device_with_room() -> None:
    async with house(**{"cpu": BUDGET, "cuda:0": BUDGET}) as h:
        first = h.add_worker("cpu")
        await h.bring_in("a")
        await h.manager.sleep("a")
        h.manager.upsert_deployment(deployment("b", weights_pages=20, pinned=True))
        await asyncio.sleep(1)
        second = h.add_worker("cuda:0")
        with await h.manager.acquire("a") as lease:
            assert lease.worker_id == "worker-cuda:0"
            assert [each.spec.name for each in first.held.values()] == ["b"]
            assert [each.spec.name for each in second.held.values()] == ["a"]


@virtually
async def test_a_worker_that_holds_other_bytes_than_promised_is_noticed() -> None:
    h = House()
    worker = h.add_worker()
    await h.bring_in("a")
    await asyncio.sleep(3)
    assert h.manager.snapshot().num_ledger_mismatches == 0
    next(iter(worker.held.values())).weights_bytes += PAGE
    worker.kv_bytes += PAGE
    await asyncio.sleep(CONFIG.usage_poll_s + 0.01)
    assert h.manager.snapshot().num_ledger_mismatches == 2
    await h.manager.stop()


@virtually
async def test_requests_that_no_batch_has_are_told_apart_at_the_next_poll() -> None:
    async with house() as h:
        worker = h.add_worker()
        h.manager.upsert_deployment(deployment("a"))
        leases = [await h.manager.acquire("a") for _ in range(3)]
        worker.num_queued = 2
        await asyncio.sleep(1.1)
        [shown] = h.manager.snapshot().deployments[0].replicas
        assert (shown.num_active, shown.num_queued) == (3, 2)
        for lease in leases:
            lease.release()
        [shown] = h.manager.snapshot().deployments[0].replicas
        assert (shown.num_active, shown.num_queued) == (0, 0), "what has ended does not wait"


@virtually
async def test_a_worker_led_before_by_somebody_else_follows_us() -> None:
    async with house() as h:
        worker = SimulatedWorker(BUDGET)
        await worker.set_lease(4 * PAGE, 17)
        h.manager.add_worker(worker)
        h.workers.append(worker)
        await asyncio.sleep(1)
        assert (worker.revision, worker.kv_bytes) == (18, BUDGET)


def test_devices_must_have_room_beside_their_reserve() -> None:
    with pytest.raises(ConfigurationError, match="exceed the reserve"):
        DeviceBudget("cpu", 10 * PAGE, 10 * PAGE)
    with pytest.raises(ConfigurationError, match="max_drain_s"):
        PlannerConfig(max_drain_s=-1)
