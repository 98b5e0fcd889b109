"""The admin API's dry run: would this model fit, who would have to leave, and how long would it take?"""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import Field

from memory_manager.policy.fit import DeviceFit
from router.control.fitting import Fitting
from router.doors.admin.bodies import AdminBody, AdminRequest, Policy
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


class FitDepartureBody(AdminBody):
    """A replica that would have to leave."""

    deployment: str
    reason: str
    bytes: int = Field(description="Weights and KV that its leaving frees.")


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
    leaving: list[FitDepartureBody]
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
        return FitBody(devices={device: _body(each) for device, each in found.items()})

    return router


def _body(found: DeviceFit) -> DeviceFitBody:
    return DeviceFitBody(
        verdict=found.verdict,
        message=found.message,
        weights_bytes=found.weights_bytes,
        kv_guarantee_bytes=found.kv_guarantee_bytes,
        kv_longest_bytes=found.kv_longest_bytes,
        free_bytes=found.free_bytes,
        leaving=[
            FitDepartureBody(deployment=each.deployment, reason=each.reason, bytes=each.freed_bytes)
            for each in found.leaving
        ],
        takes_s=found.takes_s,
    )
