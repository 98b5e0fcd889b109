"""The admin API's dry run: would this model fit, who would have to leave, and how long would it take?"""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import Field

from router.control.fitting import Fitting
from router.doors.admin.bodies import AdminBody, AdminRequest, DepartureBody, Policy
from router.doors.http.json_route import JsonRoute

__all__ = ["create_fit_routes"]


class FitQuestion(AdminRequest):
    """The model to be fitted: a source, a registered model or a deployment."""

    source: str | None = Field(
        None, min_length=1, description="A folder or GGUF file on the server, or `hf://org/name[@revision]`."
    )
    model: str | None = Field(None, description="A registered model, in its newest version.")
    deployment: str | None = None
    policy: Policy = Field(
        default_factory=Policy, description="Fields that are not sent take the deployment's, or the default."
    )


class DeviceFitBody(AdminBody):
    """How a model would fit on one device."""

    verdict: Literal["fits", "would_displace", "waits", "never"]
    message: str
    weights_bytes: int
    kv_guarantee_bytes: int = Field(description="KV that would be its own.")
    kv_longest_bytes: int = Field(
        description="KV of its longest sequence, which a worker keeps once for all of its models."
    )
    free_bytes: int = Field(description="Of the device, promised to nobody now.")
    leaving: list[DepartureBody]
    takes_s: float = Field(description="Seconds to bring the weights there once there is room, as expected.")


class FitBody(AdminBody):
    """How a model would fit, by the name of each device."""

    devices: dict[str, DeviceFitBody]


def create_fit_routes(fitting: Fitting) -> APIRouter:
    """The route ``/fit``."""
    router = APIRouter(tags=["models"], route_class=JsonRoute)

    @router.post("/fit")
    async def fit(body: FitQuestion) -> FitBody:
        """Tell how a model would fit on each device; nothing is changed, and of a source only its configuration is
        read."""
        policy = body.policy.model_dump(exclude_unset=True)
        found = await fitting.fit(
            source=body.source, model=body.model, deployment=body.deployment, policy=policy
        )
        return FitBody(devices={name: DeviceFitBody.model_validate(each) for name, each in found.items()})

    return router
