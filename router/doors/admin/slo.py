"""The admin API's SLO classes, and how well they are kept."""

from __future__ import annotations

import asyncio
import dataclasses
from itertools import islice
from typing import Annotated

from fastapi import APIRouter, Query

from model_registry.records import SLOClassRecord
from model_registry.registry import Registry
from mooring.slo import SLOClass
from router.doors.admin import bodies as types
from router.doors.admin.times import utc
from router.doors.http.json_route import JsonRoute
from router.telemetry.attainment import MISSES_KEPT, Attainment, Judged
from router.telemetry.metrics import Metrics

__all__ = ["create_slo_routes"]

NumMisses = Annotated[int, Query(ge=0, le=MISSES_KEPT, description="Most misses to list of each.")]


def create_slo_routes(registry: Registry, metrics: Metrics) -> APIRouter:
    """The routes ``/slo-classes`` and ``/slo``."""
    router = APIRouter(tags=["SLO classes"], route_class=JsonRoute)

    @router.get("/slo-classes")
    async def list_slo_classes() -> list[types.SLOClassBody]:
        return [_class_body(record) for record in await asyncio.to_thread(registry.list_slo_classes)]

    @router.post("/slo-classes", status_code=201)
    async def create_slo_class(body: types.SLOClassCreate) -> types.SLOClassBody:
        """Make a class; tenants are given it one by one."""
        return _class_body(await asyncio.to_thread(registry.create_slo_class, SLOClass(**body.model_dump())))

    @router.patch("/slo-classes/{name:path}")
    async def update_slo_class(name: str, body: types.SLOClassUpdate) -> types.SLOClassBody:
        """Change the fields that are sent. Servers may go by what was before for a few seconds."""
        changes = body.model_dump(exclude_unset=True)
        return _class_body(await asyncio.to_thread(registry.change_slo_class, name, changes))

    @router.delete("/slo-classes/{name:path}", status_code=204)
    async def delete_slo_class(name: str) -> None:
        """Delete a class; refused while tenants have it, or may use it."""
        await asyncio.to_thread(registry.delete_slo_class, name)

    @router.get("/slo")
    async def list_attainments(misses: NumMisses = 0) -> list[types.AttainmentBody]:
        """Show which share of requests met the targets of their class, by tenant, class and model."""
        now_s = metrics.clock()
        return [_attainment_body(each, now_s, misses) for each in metrics.attainments.entries()]

    return router


def _class_body(record: SLOClassRecord) -> types.SLOClassBody:
    return types.SLOClassBody(**dataclasses.asdict(record.slo_class), tenants=list(record.tenants))


def _attainment_body(entry: Attainment, now_s: float, num_misses: int) -> types.AttainmentBody:
    return types.AttainmentBody(
        tenant=entry.tenant,
        slo_class=entry.slo_class,
        model=entry.model,
        goal=entry.goal,
        windows={name: _window_body(each.count(now_s), entry.goal) for name, each in entry.windows.items()},
        misses=[
            types.MissBody(
                request_id=each.request_id,
                at=utc(each.at_s),
                ttft_s=each.ttft_s,
                tpot_s=each.tpot_s,
                **each.spent._asdict(),
            )
            for each in islice(reversed(entry.misses), num_misses)
        ],
    )


def _window_body(judged: Judged, goal: float | None) -> types.SLOWindowBody:
    return types.SLOWindowBody(
        requests=judged.num_requests,
        attained=judged.attained,
        budget_left=None if goal is None else judged.budget_left(goal),
    )
