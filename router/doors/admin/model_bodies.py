"""Bodies of the admin API about models and registrations."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from router.doors.admin.bodies import AdminBody, AdminRequest, Name, Policy

__all__ = ["ModelBody", "RegistrationBody", "RegistrationCreate", "StageBody", "VersionBody"]


class RegistrationCreate(AdminRequest):
    """A model to register and, unless ``deploy`` is false, to deploy under the same name."""

    name: Name
    source: str = Field(
        min_length=1, description="A folder or GGUF file on the server, or `hf://org/name[@revision]`."
    )
    deploy: bool = True
    policy: Policy = Field(default_factory=Policy)


class StageBody(AdminBody):
    """One step of a registration."""

    name: str = Field(
        description="`download`, `verify`, `convert`, `check`, `copy`, `check the copy`, `pack`."
    )
    state: Literal["waiting", "running", "done", "failed", "cancelled", "interrupted"]
    done_bytes: int
    total_bytes: int = Field(description="0 if that is not known, or the step has no bytes to tell.")


class RegistrationBody(AdminBody):
    """The progress of a registration."""

    id: str
    name: str
    source: str
    created: datetime
    state: Literal["running", "done", "failed", "cancelled", "interrupted"]
    stage: str = Field(description="Name of the last step that has begun.")
    done_bytes: int = Field(description="Of that step.")
    total_bytes: int = Field(description="Of that step; 0 if that is not known.")
    stages: list[StageBody] = Field(description="The steps, those that are expected to come included.")
    error: str | None = None


class ModelBody(AdminBody):
    name: str
    created: datetime
    versions: int
    deployments: list[str]


class VersionBody(AdminBody):
    model: str
    number: int
    digest: str = Field(description="sha-256 of the artifact.")
    source: str
    architecture: str
    num_parameters: int
    max_model_len: int
    num_bytes: int
    created: datetime
    default_precision: str = Field(
        description="The precision of its packed weights unless another is asked for."
    )
    config: dict[str, Any] = Field(description="Its configuration in the engine's own normal form.")
