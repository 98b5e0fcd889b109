"""The planner and the abilities of workers: sleep or unload, elastic KV or a fixed lease. Sizes are in pages."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from support.planner_views import deployment_view

from memory_manager.config import PlannerConfig
from memory_manager.kv_spec import PAGE_BYTES as PAGE
from memory_manager.policy.plan_types import (
    Action,
    DemandView,
    DeploymentView,
    DeviceView,
    Load,
    PlannerState,
    ReplicaView,
    SetKVLease,
    Sleep,
    Unload,
    WorkerView,
)
from memory_manager.policy.planner import plan
from memory_manager.policy.residency import ON_DEVICE, Residency
from memory_manager.policy.what_if import Verdict, way_in

CONFIG = PlannerConfig()
NOW = 100.0


def model(name: str, **policy: Any) -> DeploymentView:
    return deployment_view(name, weights_bytes=10 * PAGE, kv_guarantee_bytes=5 * PAGE, **policy)


def wanted(name: str, **policy: Any) -> DeploymentView:
    return model(name, demand=DemandView(1, NOW, 0, (NOW + 2,)), **policy)


def replica(
    name: str, residency: Residency = Residency.COLD, worker_id: str = "w", can_sleep: bool = True
) -> ReplicaView:
    there = residency in ON_DEVICE
    return ReplicaView(
        f"{name}/0",
        name,
        residency,
        10 * PAGE,
        5 * PAGE,
        worker_id=worker_id if there else None,
        lease_bytes=10 * PAGE if there else 0,
        can_sleep=can_sleep,
    )


def worker(worker_id: str, kv_pages: int, **abilities: bool) -> WorkerView:
    return WorkerView(worker_id, "cpu", kv_pages * PAGE, kv_pages * PAGE, **abilities)


def state(
    workers: list[WorkerView], deployments: list[DeploymentView], replicas: list[ReplicaView]
) -> PlannerState:
    device = DeviceView("cpu", 40 * PAGE)
    return PlannerState((device,), tuple(workers), tuple(deployments), tuple(replicas))


def decide(made: PlannerState) -> tuple[Action, ...]:
    return plan(made, NOW, CONFIG).actions


def leases(made: PlannerState) -> dict[str, int]:
    return {each.worker_id: each.num_bytes // PAGE for each in decide(made) if isinstance(each, SetKVLease)}


def test_an_idle_replica_that_cannot_sleep_is_unloaded() -> None:
    deployments, workers = [model("a", idle_timeout_s=1)], [worker("w", 30)]
    (sleep,) = decide(state(workers, deployments, [replica("a", Residency.RESIDENT)]))
    assert isinstance(sleep, Sleep)
    (unload,) = decide(state(workers, deployments, [replica("a", Residency.RESIDENT, can_sleep=False)]))
    assert isinstance(unload, Unload)
    assert (unload.replica_id, unload.reason) == (sleep.replica_id, sleep.reason)


def test_room_is_made_by_unloading_and_the_question_who_would_leave_is_answered() -> None:
    deployments = [model("a"), model("b"), wanted("c")]
    there = [*(replica(name, Residency.RESIDENT, can_sleep=False) for name in "ab"), replica("c")]
    made = state([worker("w", 20)], deployments, there)
    (unload,) = [each for each in decide(made) if isinstance(each, Unload)]
    assert (unload.replica_id, unload.room_for) == ("a/0", "c")
    found = way_in(made, "c", NOW, CONFIG)
    assert (found.verdict, [each.replica_id for each in found.leaving]) == (Verdict.EVICTS, ["a/0"])


def test_fixed_kv_is_the_guarantees_and_the_rest_goes_to_workers_with_elastic_kv() -> None:
    there = [replica("a", Residency.RESIDENT, "fixed"), replica("b", Residency.RESIDENT, "elastic")]
    workers = [worker("fixed", 6, elastic_kv=False), worker("elastic", 6)]
    assert leases(state(workers, [model("a"), model("b")], there)) == {"elastic": 14}


def test_fixed_kv_does_not_move_for_whatever_happens_beside_it() -> None:
    workers = [worker("fixed", 6, elastic_kv=False), worker("elastic", 14)]
    there = [replica("a", Residency.RESIDENT, "fixed"), replica("b", Residency.RESIDENT, "elastic")]
    deployments = [model("a"), model("b", idle_timeout_s=1)]
    hungry = replace(workers[0], kv_wanted_bytes=30 * PAGE, kv_wanted_since_s=NOW - 50)
    for changed in (
        state(workers, deployments, there),
        state([hungry, workers[1]], deployments, there),
        state(workers, [*deployments, wanted("c")], [*there, replica("c")]),
        state([workers[0], worker("elastic", 1)], deployments[:1], there[:1]),
    ):
        assert "fixed" not in leases(changed)
    only_hungry = decide(state([hungry, workers[1]], [model("a"), model("b")], there))
    assert only_hungry == (), "nobody sleeps for KV that cannot come"


def test_fixed_kv_comes_with_the_load_or_the_load_waits() -> None:
    fixed, rest = worker("fixed", 1, elastic_kv=False), [replica("a")]
    # 40 pages: 10 of weights and 5 of KV beside the fixed worker's own page; the elastic worker gives way first.
    tight = state([fixed, worker("elastic", 28)], [wanted("a", max_replicas=1)], rest)
    only_fixed = replace(tight, workers=(fixed,))
    assert [type(each) for each in decide(only_fixed)] == [SetKVLease, Load]
    assert leases(only_fixed) == {"fixed": 6}
    # The first plan may place it on either worker; with the elastic one taken it has to be the fixed one.
    taken = state(
        [fixed, worker("elastic", 18)],
        [wanted("a"), model("b")],
        [replica("a"), replica("b", Residency.RESIDENT, "elastic")],
    )
    moves = decide(taken)
    assert not any(isinstance(each, Load) and each.worker_id == "fixed" for each in moves)
    freed = replace(taken, workers=(fixed, worker("elastic", 14)))
    loads = [each for each in decide(freed) if isinstance(each, Load)]
    assert loads
    total = sum({"fixed": 1, "elastic": 14, **leases(freed)}.values()) + 10 + 10 * len(loads)
    assert total <= 40
