"""Sequences that wait for KV, and idle models that make room for it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.planner_views import deployment_view
from support.simulated_house import house, virtually
from support.simulated_memory import PAGE
from support.torch_engines import EngineDriver, engine_driver, tiny_model

from memory_manager.config import PlannerConfig
from memory_manager.fleet.events import EventKind
from memory_manager.kv_spec import PAGE_BYTES
from memory_manager.policy.arrivals import ArrivalWindow
from memory_manager.policy.plan_types import (
    DemandView,
    DeploymentView,
    DeviceView,
    Plan,
    PlannerState,
    ReplicaView,
    SetKVLease,
    Sleep,
    WorkerView,
)
from memory_manager.policy.planner import plan
from memory_manager.policy.residency import Residency

NOW = 100.0
CONFIG = PlannerConfig()
RARELY = 0.01  # requests per second: not one is expected while a model is away


def asked(
    wanted_pages: int,
    *,
    waited_s: float = 10.0,
    idle: dict[str, dict[str, Any]] | None = None,
    others: tuple[DeploymentView, ...] = (),
) -> Plan:
    """The plan for a busy model and idle ones of 10 pages and a guarantee of 2, on a budget of 60."""
    policies: dict[str, dict[str, Any]] = {"busy": {}, **({"a": {}} if idle is None else idle)}
    deployments = [
        deployment_view(name, 10 * PAGE, 2 * PAGE, **{"request_rate_per_s": RARELY, **policy})
        for name, policy in policies.items()
    ]
    replicas = [
        ReplicaView(
            f"{each.name}/0",
            each.name,
            Residency.RESIDENT,
            10 * PAGE,
            2 * PAGE,
            worker_id="w",
            lease_bytes=10 * PAGE,
            num_active=5 * (each.name == "busy"),
        )
        for each in deployments
    ]
    replicas += [
        ReplicaView(f"{x.name}/0", x.name, Residency.COLD, x.weights_bytes, 2 * PAGE) for x in others
    ]
    kv_bytes = 60 * PAGE - 10 * PAGE * len(deployments)
    worker = WorkerView("w", "cpu", kv_bytes, kv_bytes, wanted_pages * PAGE, NOW - waited_s)
    state = PlannerState((DeviceView("cpu", 60 * PAGE),), (worker,), (*deployments, *others), tuple(replicas))
    return plan(state, NOW, CONFIG)


def slept(made: Plan) -> list[str]:
    assert not [each for each in made.actions if isinstance(each, SetKVLease)], "it grows when they have gone"
    return [each.replica_id for each in made.actions if isinstance(each, Sleep)]


def test_an_idle_model_leaves_once_the_wait_has_cost_what_its_reload_will() -> None:
    assert slept(asked(41, waited_s=1.01)) == ["a/0"]
    early = asked(41, waited_s=0.75)
    assert slept(early) == []
    assert early.next_at_s == pytest.approx(NOW + 0.25)


def test_nobody_leaves_where_nothing_waits_or_the_lease_suffices() -> None:
    assert slept(asked(0)) == slept(asked(40)) == []


def test_as_many_leave_as_are_needed_the_cheapest_first() -> None:
    idle = {name: {"request_rate_per_s": rate} for name, rate in {"a": 0.03, "b": 0.01, "c": 0.02}.items()}
    assert slept(asked(21, idle=idle)) == ["b/0"]
    assert slept(asked(40, idle=idle)) == ["b/0", "c/0"]
    assert sorted(slept(asked(500, idle=idle))) == ["a/0", "b/0", "c/0"], "some of it is better than nothing"


@pytest.mark.parametrize(
    "policy",
    [
        {"pinned": True},
        {"min_replicas": 1},
        {"demand": DemandView(1, NOW, 0, (NOW + 1,))},
        {"max_replicas": 2, "wanted_replicas": 2},
        {"next_arrival": ArrivalWindow(NOW + 0.2, NOW + 5)},
        {"request_rate_per_s": 0.5},  # and some would come too early for a wake
        {"request_rate_per_s": 5.0},  # many would wait for it as long
    ],
)
def test_who_would_be_back_at_once_or_is_worth_more_stays(policy: dict[str, Any]) -> None:
    assert slept(asked(41, idle={"a": policy})) == []


def test_a_model_that_waits_for_its_place_comes_before_kv() -> None:
    big = deployment_view("big", 30 * PAGE, 2 * PAGE, demand=DemandView(1, NOW, 0, (NOW + 1,)))
    made = asked(500, idle={"a": {}, "b": {"reload_s": 5.0}}, others=(big,))
    [sleep] = [each for each in made.actions if isinstance(each, Sleep)]
    assert sleep.room_for == "big"


@virtually
async def test_a_worker_that_waits_for_kv_gets_that_of_a_model_that_sleeps_for_it() -> None:
    async with house(cpu=40 * PAGE) as h:
        worker = h.add_worker(budget_bytes=40 * PAGE)
        for name in ("busy", "idle"):
            await h.bring_in(name)
        lease = await h.manager.acquire("busy")
        await asyncio.sleep(1)
        worker.kv_wanted_bytes = 25 * PAGE
        await asyncio.sleep(2)
        assert (h.residency("busy"), h.residency("idle")) == (Residency.RESIDENT, Residency.WARM)
        assert worker.kv_bytes == 30 * PAGE
        [told] = h.told(EventKind.SLEEP, of="idle")
        assert "sequences have waited" in told.reason
        assert told.figures["kv_short_bytes"] == 5 * PAGE
        worker.kv_wanted_bytes = 0
        (await h.manager.acquire("idle")).release()
        await asyncio.sleep(2)
        assert h.residency("idle") is Residency.RESIDENT, "nothing waits any more"
        lease.release()


def _crowd(driver: EngineDriver) -> None:
    """More sequences than there is KV for, begun as far as they can be."""
    for number in range(32):
        driver.submit(number, [3 + number % 50] * 150, max_tokens=6, cache_scope=None)
    for _ in range(8):
        driver.step()
    assert driver.engine.stats().replicas[0].num_queued


def test_an_engine_tells_the_lease_under_which_none_of_its_sequences_would_wait() -> None:
    with engine_driver(lease_pages=2, max_running_sequences=64) as driver:
        driver.load(tiny_model("llama"))
        assert driver.engine.stats().kv_wanted_bytes == 0
        _crowd(driver)
        stats = driver.engine.stats()
        assert stats.kv_wanted_bytes > stats.kv_lease_bytes
        assert stats.kv_wanted_bytes % PAGE_BYTES == 0
        driver.lease_pages(stats.kv_wanted_bytes // PAGE_BYTES)
        while driver.engine.stats().replicas[0].num_queued:
            driver.step()
            assert driver.engine.stats().kv_wanted_bytes == 0
        driver.run()


def test_what_a_cap_forbids_is_not_wanted() -> None:
    with engine_driver(lease_pages=16, max_running_sequences=64) as driver:
        driver.load(tiny_model("llama"), kv_cap_bytes=PAGE_BYTES)
        _crowd(driver)
        stats = driver.engine.stats()
        assert stats.kv_wanted_bytes <= stats.kv_lease_bytes + PAGE_BYTES
        driver.run()
