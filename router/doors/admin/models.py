"""The admin API's models, their versions, and registrations."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter

from model_registry.registry import Registry
from mooring.errors import InvalidRequestError
from router.control.registrar import Registrar
from router.control.registration import Registration
from router.control.registrations import Registrations
from router.doors.admin import model_bodies as types
from router.doors.admin.paging import Paged
from router.doors.admin.times import utc
from router.doors.http.json_route import JsonRoute

__all__ = ["create_model_routes", "registration_body"]


def create_model_routes(registry: Registry, registrar: Registrar, registrations: Registrations) -> APIRouter:
    """The routes of models and registrations."""
    router = APIRouter(tags=["models"], route_class=JsonRoute)

    @router.post("/models", status_code=202)
    async def register_model(body: types.RegistrationCreate) -> types.RegistrationBody:
        """Begin to register a model; ask for the registration to see how far it is."""
        policy = body.policy.model_dump(exclude_unset=True) if body.deploy else None
        return registration_body(await registrations.start(body.name, body.source, policy))

    @router.get("/models")
    async def list_models(listing: Paged) -> list[types.ModelBody]:
        found = await asyncio.to_thread(registry.list_models, listing.page)
        models = listing.shown(found, lambda each: each.name)
        names = [each.name for each in models]
        deployed = await asyncio.to_thread(registry.deployments_of_models, names)
        return [
            types.ModelBody(
                name=model.name,
                created=utc(model.created_at_s),
                versions=len(model.version_numbers),
                deployments=deployed.get(model.name, []),
            )
            for model in models
        ]

    # Names may hold slashes, so the versions' route comes first: the shorter one would match its path too.
    @router.get("/models/{name:path}/versions")
    async def list_versions(name: str) -> list[types.VersionBody]:
        return [
            types.VersionBody(
                model=version.model,
                number=version.number,
                digest=version.digest,
                source=version.source,
                architecture=version.architecture,
                num_parameters=version.description["num_parameters"],
                max_model_len=version.description["max_model_len"],
                num_bytes=version.num_bytes,
                created=utc(version.created_at_s),
                default_precision=version.description["default_precision"],
                config=version.description["config"],
            )
            for version in await asyncio.to_thread(registry.list_versions, name)
        ]

    @router.delete("/models/{name:path}", status_code=204)
    async def delete_model(name: str) -> None:
        """Delete a model with all its versions; refused while a deployment uses one."""
        await registrar.delete_model(name)

    @router.get("/registrations")
    async def list_registrations(listing: Paged) -> list[types.RegistrationBody]:
        """List registrations, oldest first."""
        page = listing.page
        found = [each for each in registrations.list() if each.name.startswith(page.search)]
        if page.after is not None:
            ids = [each.id for each in found]
            if page.after not in ids:
                raise InvalidRequestError("There is no registration of this id.", param="after")
            found = found[ids.index(page.after) + 1 :]
        return [registration_body(each) for each in listing.shown(found, lambda each: each.id)]

    @router.get("/registrations/{registration_id}")
    async def show_registration(registration_id: str) -> types.RegistrationBody:
        return registration_body(registrations.get(registration_id))

    @router.post("/registrations/{registration_id}/cancel")
    async def cancel_registration(registration_id: str) -> types.RegistrationBody:
        """End a registration and take back what it has registered."""
        return registration_body(await registrations.cancel(registration_id))

    @router.post("/registrations/{registration_id}/resume", status_code=202)
    async def resume_registration(registration_id: str) -> types.RegistrationBody:
        """Go on with a registration that failed, was cancelled or interrupted."""
        return registration_body(await registrations.resume(registration_id))

    return router


def registration_body(registration: Registration) -> types.RegistrationBody:
    """A registration as the admin API tells it."""
    return types.RegistrationBody(
        id=registration.id,
        name=registration.name,
        source=registration.source,
        created=utc(registration.created_at_s),
        state=registration.state,
        stage=registration.stage,
        done_bytes=registration.done_bytes,
        total_bytes=registration.total_bytes,
        stages=[types.StageBody.model_validate(each) for each in registration.stages],
        error=registration.error,
    )
