"""The controller's records as the planner and status pages see them: to look changes nothing."""

from __future__ import annotations

from dataclasses import fields

from support.simulated_house import CONFIG, House, house, virtually

from memory_manager.fleet.records import Deployment, Replica
from memory_manager.fleet.views import HostTier, planner_state, snapshot, unsettled

FAR_LATER_S = 1e6


def contents(record: Deployment | Replica) -> dict[str, str]:
    """A record's fields as text, other records by their identity."""
    return {each.name: repr(getattr(record, each.name)) for each in fields(record)}


def everything(h: House) -> list[dict[str, str]]:
    return [contents(each) for each in [*h.manager._deployments.values(), *h.manager._replicas.values()]]


@virtually
async def test_looking_at_the_records_changes_none_of_them() -> None:
    async with house() as h:
        h.add_worker()
        for name in "abc":
            await h.bring_in(name, idle_timeout_s=5)
        await h.manager.sleep("a")
        for each in h.manager._deployments.values():
            each.stirred, each.due_s = True, 0.0  # due, and at rest or not
        before = everything(h)
        deployments, replicas = h.manager._deployments, h.manager._replicas
        where = h.manager._ledgers, h.manager._workers
        unsettled(deployments.values(), replicas.values())
        host = HostTier(h.cache, replicas.values())
        planner_state(*where, host, deployments.values(), replicas.values(), CONFIG, FAR_LATER_S)
        snapshot(FAR_LATER_S, *where, deployments, 0, ())
        h.manager.snapshot()
        assert everything(h) == before
