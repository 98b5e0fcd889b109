"""The controller's records as the frozen values that the planner reads and that status pages show."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from memory_manager.config import ManagerConfig
from memory_manager.fleet.ledger import Ledger
from memory_manager.fleet.records import Deployment, HostCopies, Replica
from memory_manager.fleet.status import (
    DeploymentStatus,
    DeviceQueueStatus,
    DeviceStatus,
    ReplicaStatus,
    Snapshot,
    WorkerStatus,
)
from memory_manager.fleet.worker_group import Worker
from memory_manager.policy.plan_types import (
    CopyView,
    DeploymentView,
    DeviceView,
    HostView,
    PlannerState,
    ReplicaView,
    WorkerView,
)
from memory_manager.policy.residency import Residency

__all__ = ["HostTier", "deployment_status", "planner_state", "snapshot", "unsettled"]


class HostTier(NamedTuple):
    """The host cache, and all replicas, some of which hold copies in it."""

    cache: HostCopies
    replicas: Iterable[Replica]


def unsettled(
    deployments: Iterable[Deployment], replicas: Iterable[Replica]
) -> tuple[list[Deployment], list[Replica], float]:
    """The deployments and replicas that a plan can turn on, and the time at which the next of the others will be
    among them without anything happening to it (``inf`` for never).

    Most of many deployments are at rest, and a plan comes out the same with and without them. Each has to have
    noted before (``Deployment.note_rest``) whether it is.
    """
    moving: list[Deployment] = []
    next_due_s = math.inf
    for deployment in deployments:
        if deployment.stirred:
            moving.append(deployment)
        elif deployment.due_s < next_due_s:
            next_due_s = deployment.due_s
    stirred = [each for each in replicas if each.deployment.stirred or (each.retired and not each.is_at_rest)]
    return moving, stirred, next_due_s


def planner_state(
    ledgers: Mapping[str, Ledger],
    workers: Mapping[str, Worker],
    host: HostTier,
    deployments: Iterable[Deployment],
    replicas: Collection[Replica],
    config: ManagerConfig,
    now_s: float,
    next_due_s: float = math.inf,
) -> PlannerState:
    """Everything that the planner reads. ``next_due_s``: as ``unsettled`` gives it, where some are left out."""
    return PlannerState(
        devices=tuple(
            DeviceView(each.device, each.budget_bytes, each.bytes_of("reserve"), each.others_bytes)
            for each in ledgers.values()
        ),
        workers=tuple(
            WorkerView(
                each.worker_id,
                each.port.device,
                each.kv.lease_bytes,
                each.kv.target_bytes,
                each.kv_wanted_bytes,
                each.kv_wanted_since_s,
                now_s if each.kv_wanted_bytes else each.kv_wanted_at_s,
                each.capabilities.elastic_kv,
                each.leaves_by_s,
                each.capabilities.engine,
                each.port.serves,
            )
            for each in workers.values()
            if each.takes_orders
        ),
        deployments=tuple(_deployment_view(each, config, now_s) for each in deployments),
        replicas=tuple(_replica_view(each, host.cache) for each in replicas),
        next_due_s=next_due_s,
        host=_host_view(host, replicas, now_s),
    )


def _host_view(host: HostTier, considered: Iterable[Replica], now_s: float) -> HostView:
    """The host tier. The copies are told only if one of the replicas that the plan considers may be loaded and wants
    more than is free, since they may be those of all sleepers."""
    cache, free_bytes = host.cache, host.cache.free_bytes
    wants_room = any(
        each.group is None
        and not each.spec.artifact.is_folder
        and each.spec.artifact.num_bytes > free_bytes
        and not cache.holds(each.spec.artifact.key)
        for each in considered
    )
    holders = [each for each in host.replicas if each.host_copy is not None] if wants_room else []
    return HostView(cache.budget_bytes, free_bytes, tuple(_copy_view(each, now_s) for each in holders))


def _copy_view(replica: Replica, now_s: float) -> CopyView:
    is_going = replica.residency is Residency.WARM or replica.takes_requests
    return CopyView(
        replica_id=replica.replica_id,
        artifact_key=replica.spec.artifact.key,
        num_bytes=replica.spec.artifact.num_bytes,
        may_go=replica.can_drop_copy(now_s) and not replica.is_awaited_asleep,
        is_going=is_going and replica.in_flight,
        unused_since_s=replica.copy_unused_since_s,
    )


def _deployment_view(deployment: Deployment, config: ManagerConfig, now_s: float) -> DeploymentView:
    spec = deployment.spec
    return DeploymentView(  # by position: with keywords so long a tuple takes more than twice the time
        spec.name,
        spec.weights_bytes,
        spec.kv_guarantee_bytes,
        spec.policy,
        deployment.held,
        deployment.wanted_since_s,
        deployment.demand(),
        deployment.rate.per_s(now_s, config.rate_half_life_s),
        deployment.reload_s(config),
        deployment.pace.first_token_s,
        deployment.pattern.longest_pause_s,
        deployment.exchange,
        deployment.next_arrival(now_s, config),
        deployment.scale.num_replicas,
        deployment.scale.due_s(config),
        spec.kv_longest_bytes,
        spec.engine,
    )


def _replica_view(replica: Replica, host_cache: HostCopies) -> ReplicaView:
    spec, state, artifact = replica.spec, replica.state, replica.spec.artifact
    return ReplicaView(  # by position: with keywords so long a tuple takes more than twice the time
        replica.replica_id,
        spec.name,
        state.residency,
        spec.weights_bytes,
        spec.kv_guarantee_bytes,
        replica.worker_id,
        replica.lease_bytes,
        len(replica.tickets),
        replica.in_flight,
        replica.is_leaving,
        replica.retired,
        replica.asleep is not None,
        state.since_s,
        replica.last_used_s,
        replica.retry_at_s,
        replica.can_sleep,
        replica.is_guest,
        _latest_s(replica),
        artifact.key,
        None if artifact.is_folder else 0 if host_cache.holds(artifact.key) else artifact.num_bytes,
        spec.kv_longest_bytes,
        replica.kept_bytes,
    )


def _latest_s(replica: Replica) -> tuple[float, ...]:
    """The latest moments of the requests on a replica, and if it takes requests, of those that wait for it."""
    latest_s = [each.latest_s() for each in replica.tickets]
    deployment = replica.deployment
    if replica.takes_requests and deployment.waiters:
        latest_s += [each.latest_s(deployment.pace) for each in deployment.waiters]
    return tuple(latest_s)


def snapshot(
    at_s: float,
    ledgers: Mapping[str, Ledger],
    workers: Mapping[str, Worker],
    deployments: Mapping[str, Deployment],
    num_ledger_mismatches: int,
    queues: tuple[DeviceQueueStatus, ...],
) -> Snapshot:
    """The whole state as status pages show it."""
    return Snapshot(
        at_s=at_s,
        devices=tuple(
            DeviceStatus(
                name=each.device,
                budget_bytes=each.budget_bytes,
                owners={str(owner): num_bytes for owner, num_bytes in each.owners().items()},
            )
            for each in ledgers.values()
        ),
        workers=tuple(
            WorkerStatus(
                each.worker_id,
                each.port.device,
                each.kv.lease_bytes,
                each.stats,
                each.sampled_at_s,
            )
            for each in workers.values()
        ),
        deployments=tuple(deployment_status(each, at_s) for each in deployments.values()),
        num_ledger_mismatches=num_ledger_mismatches,
        queues=queues,
    )


def deployment_status(deployment: Deployment, now_s: float) -> DeploymentStatus:
    """One deployment as status pages show it."""
    best = deployment.best_replica()
    return DeploymentStatus(
        name=deployment.spec.name,
        enabled=deployment.spec.policy.enabled,
        residency=best.residency,
        reason=deployment.refusal or best.state.reason,
        num_waiting=len(deployment.waiters),
        load_s=deployment.load_s,
        wake_s=deployment.wake_s,
        step_costs=deployment.costs.measured,
        replicas=tuple(
            ReplicaStatus(
                replica_id=each.replica_id,
                worker_id=each.worker_id,
                residency=each.residency,
                reason=each.state.reason,
                lease_bytes=each.lease_bytes,
                num_active=len(each.tickets),
                for_s=now_s - each.state.since_s,
                stats=each.stats,
            )
            for each in deployment.replicas
        ),
    )
