"""The admin API's answer to: why is this model where it is?"""

from __future__ import annotations

from fastapi import APIRouter

from memory_manager.fleet.controller import MemoryManager
from memory_manager.fleet.status import DeploymentStatus
from memory_manager.policy.what_if import WayIn
from mooring.errors import ModelNotFoundError
from router.control.journal import Journal
from router.control.registrar import Registrar
from router.doors.admin import bodies as types
from router.doors.admin.events import event_body

__all__ = ["create_why_routes", "replica_bodies"]

NUM_DECISIONS = 10


def create_why_routes(manager: MemoryManager, registrar: Registrar, journal: Journal) -> APIRouter:
    """The route ``/deployments/NAME/why``. Add it before the route that takes any path for a name."""
    router = APIRouter(prefix="/deployments", tags=["deployments"])

    @router.get("/{name:path}/why")
    async def why(name: str) -> types.WhyBody:
        """Explain a deployment's residency: since when it has it, what was decided about it, and what would
        have to leave for it to come in now."""
        decisions = [event_body(each) for each in await journal.events(NUM_DECISIONS, deployment=name)]
        snapshot = manager.snapshot()
        reason = registrar.directory.reason(name)
        for status in snapshot.deployments:
            if status.name == name:
                way_in = _way_in(manager.way_in(name)) if reason is None else None
                return _why(status, reason or status.reason, way_in, decisions)
        if reason is None:
            raise ModelNotFoundError(f"there is no deployment {name!r} that is served", param="name")
        return types.WhyBody(
            name=name,
            residency="failed",
            reason=reason,
            num_waiting=0,
            replicas=[],
            way_in=None,
            decisions=decisions,
        )

    return router


def _why(
    status: DeploymentStatus,
    reason: str,
    way_in: types.WayInBody | None,
    decisions: list[types.EventBody],
) -> types.WhyBody:
    return types.WhyBody(
        name=status.name,
        residency=status.residency.value,
        reason=reason or None,
        num_waiting=status.num_waiting,
        replicas=replica_bodies(status),
        way_in=way_in,
        decisions=decisions,
    )


def replica_bodies(status: DeploymentStatus) -> list[types.ReplicaBody]:
    """The replicas of a deployment."""
    return [
        types.ReplicaBody(
            id=each.replica_id,
            worker=each.worker_id,
            residency=each.residency.value,
            reason=each.reason,
            for_s=each.for_s,
            lease_bytes=each.lease_bytes,
            num_active=each.num_active,
            stats=each.stats,
        )
        for each in status.replicas
    ]


def _way_in(answer: WayIn) -> types.WayInBody:
    leaving = [types.DepartureBody.model_validate(each) for each in answer.leaving]
    return types.WayInBody(verdict=answer.verdict.value, message=answer.message, leaving=leaving)
