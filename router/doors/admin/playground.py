"""The playground's calls: OpenAI's routes, carried out for the operator as one of the tenants."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request

from router.doors.http.errors import ERROR_RESPONSES
from router.tenancy.tenant import PLAYGROUND, TENANT_HEADER, KnownTenant, Tenant, tenant_from

__all__ = ["create_playground_routes"]


def create_playground_routes(answering: APIRouter, find_tenant: Callable[[str], KnownTenant]) -> APIRouter:
    """The routes under ``/admin/v1/playground``.

    Args:
        answering: OpenAI's routes, which go by the tenant in a request's state.
        find_tenant: the registry's look-up by name; blocking. Raises ``NotFoundError``.
    """

    async def tenant_of(name: str | None) -> Tenant:
        if name is None or name == PLAYGROUND.name:
            return PLAYGROUND
        return tenant_from(await asyncio.to_thread(find_tenant, name))

    async def act_as(
        request: Request, tenant: Annotated[str | None, Header(alias=TENANT_HEADER)] = None
    ) -> None:
        request.state.tenant = await tenant_of(tenant)

    router = APIRouter(
        prefix="/admin/v1/playground",
        tags=["playground"],
        responses=dict(ERROR_RESPONSES),
        dependencies=[Depends(act_as)],
    )
    router.include_router(answering)
    return router
