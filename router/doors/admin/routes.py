"""The admin API: models, deployments, tenants, keys, SLO classes, and the bytes that each owner holds.

The ``mooring`` command and the web UI speak to this API and to nothing else. Every call needs the admin key: the
HTTP door's guard checks it.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass

from fastapi import APIRouter

from engines.supervise.supervisor import WorkerProcess
from memory_manager.fleet.controller import MemoryManager
from memory_manager.fleet.status import DeploymentStatus, Snapshot, WorkerStatus
from model_registry.records import DeploymentRecord
from model_registry.registry import Registry
from mooring.policy import DeploymentPolicy
from router.control.fitting import Fitting
from router.control.journal import Journal
from router.control.registrar import Registrar
from router.control.registrations import Registrations
from router.doors.admin import bodies as types
from router.doors.admin.events import create_event_routes
from router.doors.admin.fit import create_fit_routes
from router.doors.admin.live import create_live_routes, device_bodies
from router.doors.admin.models import create_model_routes
from router.doors.admin.paging import Paged
from router.doors.admin.slo import create_slo_routes
from router.doors.admin.tenants import create_tenant_routes
from router.doors.admin.why import create_why_routes, replica_bodies
from router.doors.http.errors import ERROR_RESPONSES
from router.doors.http.json_route import JsonRoute
from router.feed.feed import Feed
from router.telemetry.metrics import Metrics

__all__ = ["AdminServices", "create_admin_router"]


@dataclass(frozen=True, slots=True)
class AdminServices:
    """The parts that the admin API is given.

    Attributes:
        workers: the supervisor's view of its processes.
        feed: the live feed.
        journal: the manager's events.
        metrics: what the doors have measured.
    """

    registry: Registry
    registrar: Registrar
    registrations: Registrations
    fitting: Fitting
    manager: MemoryManager
    workers: Callable[[], Sequence[WorkerProcess]]
    feed: Feed
    journal: Journal
    metrics: Metrics


def create_admin_router(services: AdminServices) -> APIRouter:
    """The routes under ``/admin/v1``."""
    router = APIRouter(prefix="/admin/v1", responses=dict(ERROR_RESPONSES))
    router.include_router(create_model_routes(services.registry, services.registrar, services.registrations))
    router.include_router(create_fit_routes(services.fitting))
    router.include_router(create_why_routes(services.manager, services.registrar, services.journal))
    router.include_router(_deployment_routes(services))
    router.include_router(create_tenant_routes(services.registry))
    router.include_router(create_slo_routes(services.registry, services.metrics))
    router.include_router(_status_routes(services))
    router.include_router(create_event_routes(services.journal))
    router.include_router(create_live_routes(services.feed))
    return router


def _deployment_routes(services: AdminServices) -> APIRouter:
    router = APIRouter(prefix="/deployments", tags=["deployments"], route_class=JsonRoute)
    registrar, registry = services.registrar, services.registry

    def shown(record: DeploymentRecord) -> types.DeploymentBody:
        return _deployment(services, record, services.manager.status(record.name))

    @router.get("")
    async def list_deployments(listing: Paged) -> list[types.DeploymentBody]:
        found = await asyncio.to_thread(registry.list_deployments, listing.page)
        return [shown(record) for record in listing.shown(found, lambda each: each.name)]

    @router.post("", status_code=201)
    async def create_deployment(body: types.DeploymentCreate) -> types.DeploymentBody:
        """Deploy a registered model."""
        record = await registrar.create(
            body.name, body.model, body.version, _policy(body.policy), body.engine
        )
        return shown(record)

    @router.post("/{name:path}/sleep", status_code=204)
    async def sleep(name: str) -> None:
        """Take a deployment off its device once its running requests have ended; the next request wakes
        it."""
        await registrar.sleep(name)

    @router.post("/{name:path}/wake", status_code=204)
    async def wake(name: str) -> None:
        """Bring a deployment to its device; answers when it is there."""
        await registrar.wake(name)

    @router.get("/{name:path}")
    async def show_deployment(name: str) -> types.DeploymentBody:
        return shown(await asyncio.to_thread(registry.get_deployment, name))

    @router.patch("/{name:path}")
    async def update_deployment(name: str, body: types.DeploymentUpdate) -> types.DeploymentBody:
        """Change the fields that are sent."""
        return shown(await registrar.update(name, body.model_dump(exclude_unset=True)))

    @router.delete("/{name:path}", status_code=204)
    async def delete_deployment(name: str) -> None:
        """Stop serving a deployment; running requests finish and the model stays registered."""
        await registrar.delete(name)

    return router


def _status_routes(services: AdminServices) -> APIRouter:
    router = APIRouter(tags=["status"])

    def workers(snapshot: Snapshot) -> list[types.WorkerBody]:
        managed = {each.worker_id: each for each in snapshot.workers}
        return [_worker_status(each, managed.get(each.worker_id)) for each in services.workers()]

    @router.get("/workers")
    async def list_workers() -> list[types.WorkerBody]:
        """Worker processes."""
        return workers(services.manager.snapshot())

    @router.get("/queues")
    async def list_queues() -> list[types.QueueBody]:
        """Show who waits for each device, and for what."""
        return _queues(services.manager.snapshot())

    @router.get("/status")
    async def status() -> types.StatusBody:
        """Show the bytes that each owner holds, the place of each model, and who waits for the devices."""
        records = await asyncio.to_thread(services.registry.list_deployments)
        published, snapshot = await services.feed.fresh_with_snapshot()
        managed = _by_name(snapshot)
        return types.StatusBody(
            devices=device_bodies(published.state["devices"]),
            workers=workers(snapshot),
            deployments=[
                *(_deployment_status(services, record, managed.get(record.name)) for record in records),
                *_being_made(services.registrar, {record.name for record in records}),
            ],
            queues=_queues(snapshot),
            ledger_mismatches=snapshot.num_ledger_mismatches,
        )

    return router


def _queues(snapshot: Snapshot) -> list[types.QueueBody]:
    return [types.QueueBody.model_validate(each) for each in snapshot.queues]


def _worker_status(worker: WorkerProcess, managed: WorkerStatus | None) -> types.WorkerBody:
    return types.WorkerBody(
        worker_id=worker.worker_id,
        pid=worker.pid,
        device=worker.device,
        state=worker.state.value,
        stats=None if managed is None else managed.stats,
    )


def _by_name(snapshot: Snapshot) -> Mapping[str, DeploymentStatus]:
    return {each.name: each for each in snapshot.deployments}


def _deployment_status(
    services: AdminServices, record: DeploymentRecord, managed: DeploymentStatus | None
) -> types.DeploymentStatusBody:
    """A deployment's present state; ``managed`` is the manager's view of it, None if it has none."""
    if managed is not None:
        return types.DeploymentStatusBody(
            name=record.name,
            engine=record.engine,
            residency=managed.residency.value,
            reason=managed.reason or None,
            step_costs=managed.step_costs,
            replicas=replica_bodies(managed),
        )
    reason = services.registrar.directory.reason(record.name)
    return types.DeploymentStatusBody(
        name=record.name,
        engine=record.engine,
        residency="cold" if reason is None else "failed",  # cold while it is being packed
        reason=reason,
        replicas=[],
    )


def _being_made(registrar: Registrar, deployed: Set[str]) -> list[types.DeploymentStatusBody]:
    """Models that are still being made, with their progress as the reason; without those that are ``deployed``."""
    return [
        types.DeploymentStatusBody(
            name=name,
            engine=registrar.engine,
            residency="cold",
            reason=f"being made: {preparation}",
            replicas=[],
        )
        for name, preparation in registrar.directory.preparing().items()
        if name not in deployed
    ]


def _deployment(
    services: AdminServices, record: DeploymentRecord, managed: DeploymentStatus | None
) -> types.DeploymentBody:
    status = _deployment_status(services, record, managed)
    return types.DeploymentBody(
        name=record.name,
        model=record.variant.version.model,
        version=record.variant.version.number,
        precision=record.variant.precision,
        engine=record.engine,
        policy=types.Policy.model_validate(dataclasses.asdict(record.policy)),
        residency=status.residency,
        reason=status.reason,
    )


def _policy(body: types.Policy) -> DeploymentPolicy:
    return DeploymentPolicy(**body.model_dump())
