"""The admin API's tenants and their keys."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fastapi import APIRouter

from model_registry.records import KeyRecord, TenantRecord
from model_registry.registry import Registry
from mooring.errors import InvalidRequestError
from router.doors.admin import bodies as types
from router.doors.admin.paging import Paged
from router.doors.admin.times import utc
from router.doors.http.json_route import JsonRoute

__all__ = ["create_tenant_routes"]


def create_tenant_routes(registry: Registry) -> APIRouter:
    """The routes under ``/tenants``."""
    router = APIRouter(prefix="/tenants", tags=["tenants"], route_class=JsonRoute)

    def bodies(records: Sequence[TenantRecord]) -> list[types.TenantBody]:
        num_keys = registry.count_valid_keys([each.id for each in records])
        return [_tenant(each, num_keys.get(each.id, 0)) for each in records]

    async def body_of(record: TenantRecord) -> types.TenantBody:
        return (await asyncio.to_thread(bodies, [record]))[0]

    @router.get("")
    async def list_tenants(listing: Paged) -> list[types.TenantBody]:
        records = await asyncio.to_thread(registry.list_tenants, listing.page)
        return await asyncio.to_thread(bodies, listing.shown(records, lambda each: each.name))

    @router.post("", status_code=201)
    async def create_tenant(body: types.TenantCreate) -> types.TenantBody:
        return await body_of(await asyncio.to_thread(registry.create_tenant, body.name, body.weight))

    @router.patch("/{name}")
    async def update_tenant(name: str, body: types.TenantUpdate) -> types.TenantBody:
        """Change the fields that are sent. Servers may go by what was before for a few seconds."""
        changes = body.model_dump(exclude_unset=True)
        if not changes:
            fields = ", ".join(f"'{field}'" for field in types.TenantUpdate.model_fields)
            raise InvalidRequestError(f"Nothing to change: send one of {fields}.")
        return await body_of(await asyncio.to_thread(registry.change_tenant, name, changes))

    @router.delete("/{name}", status_code=204)
    async def delete_tenant(name: str) -> None:
        """Delete a tenant; refused while it has keys that are not revoked."""
        await asyncio.to_thread(registry.delete_tenant, name)

    @router.get("/{name}/keys")
    async def list_keys(name: str, listing: Paged) -> list[types.KeyBody]:
        """List a tenant's keys, oldest first; `search` is for their names and for the keys' first characters."""
        records = await asyncio.to_thread(registry.list_keys, name, listing.page)
        return [_key(record) for record in listing.shown(records, lambda each: str(each.id))]

    @router.post("/{name}/keys", status_code=201)
    async def create_key(name: str, body: types.KeyCreate) -> types.KeyCreated:
        """Make a key; this answer is the only one that holds it."""
        key, record = await asyncio.to_thread(registry.create_key, name, body.name)
        return types.KeyCreated(**_key(record).model_dump(), key=key)

    @router.delete("/{name}/keys/{prefix}", status_code=204)
    async def revoke_key(name: str, prefix: str) -> None:
        """Revoke the key that begins so. Servers may still take it for a few seconds."""
        await asyncio.to_thread(registry.revoke_key, name, prefix)

    return router


def _tenant(record: TenantRecord, num_keys: int) -> types.TenantBody:
    return types.TenantBody(
        name=record.name,
        created=utc(record.created_at_s),
        keys=num_keys,
        slo_class=None if record.slo_class is None else record.slo_class.name,
        allowed_slo_classes=[each.name for each in record.allowed_slo_classes],
        weight=record.weight,
    )


def _key(record: KeyRecord) -> types.KeyBody:
    revoked = utc(record.revoked_at_s) if record.revoked_at_s is not None else None
    return types.KeyBody(
        prefix=record.prefix,
        name=record.name,
        tenant=record.tenant,
        created=utc(record.created_at_s),
        revoked=revoked,
    )
