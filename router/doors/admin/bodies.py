"""Bodies of the admin API, as its OpenAPI page describes them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from memory_manager.policy.device_queue import QueuePolicy
from memory_manager.policy.step_model import StepCosts
from memory_manager.policy.wait_reason import WaitReason
from memory_manager.stats import ReplicaStats, WorkerStats
from mooring.declared_models import with_fields_of
from mooring.policy import WEIGHTS, DeploymentPolicy
from mooring.slo import SLOClass
from router.doors.http.json_route import BoundedBody

__all__ = [
    "AdminBody",
    "AdminRequest",
    "AttainmentBody",
    "DepartureBody",
    "DeploymentBody",
    "DeploymentCreate",
    "DeploymentStatusBody",
    "DeploymentUpdate",
    "DeviceBody",
    "DeviceMemoryBody",
    "EventBody",
    "EventDetailBody",
    "HistoryBody",
    "KeyBody",
    "KeyCreate",
    "KeyCreated",
    "MissBody",
    "Name",
    "Policy",
    "QueueBody",
    "QueueShareBody",
    "ReplicaBody",
    "SLOClassBody",
    "SLOClassCreate",
    "SLOClassUpdate",
    "SLOWindowBody",
    "StatusBody",
    "TenantBody",
    "TenantCreate",
    "TenantUpdate",
    "WaitingBody",
    "WayInBody",
    "WhyBody",
    "WorkerBody",
]


Name = Annotated[
    str, Field(description="1 to 128 letters, digits and `. _ : / -`, the first one a letter or digit.")
]


_WEIGHT = "Its share of a device among tenants of one priority, relative to theirs."


class AdminBody(BaseModel):
    """Base of what the admin API tells."""

    model_config = ConfigDict(extra="forbid", from_attributes=True)


class AdminRequest(BoundedBody):
    """Base of what it is told."""

    model_config = ConfigDict(extra="forbid", strict=True)


@with_fields_of(DeploymentPolicy)
class Policy(AdminRequest):
    """How a deployment is treated. Sizes are in bytes; fields that are not set take the server's default."""


class DeploymentCreate(AdminRequest):
    name: Name
    model: str
    version: int | None = Field(None, description="The latest if not set.")
    engine: str | None = Field(None, description="Engine that runs it; the server's own if not set.")
    policy: Policy = Field(default_factory=Policy)


@with_fields_of(DeploymentPolicy, may_be_none=True)
class DeploymentUpdate(AdminRequest):
    """Changes to a deployment: only the fields that are sent; null sets a field back to the server's
    default."""

    version: int | None = Field(None, ge=1, description="Another version of the same model.")


class DeploymentBody(AdminBody):
    name: str
    model: str
    version: int
    precision: str
    engine: str
    policy: Policy
    residency: str
    reason: str | None = Field(None, description="Why it failed, if it did.")


class TenantCreate(AdminRequest):
    name: str = Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    weight: float = Field(1.0, ge=WEIGHTS.ge, le=WEIGHTS.le, description=_WEIGHT)


class TenantUpdate(AdminRequest):
    """Changes to a tenant: only the fields that are sent."""

    slo_class: str | None = Field(None, description="Its SLO class; null takes it away.")
    allowed_slo_classes: list[str] | None = Field(
        None, max_length=1024, description="All that its requests may name beside its own; null for none."
    )
    weight: float | None = Field(
        None, ge=WEIGHTS.ge, le=WEIGHTS.le, description=f"{_WEIGHT} null sets it back to 1."
    )


class TenantBody(AdminBody):
    name: str
    created: datetime
    keys: int = Field(description="Keys that are not revoked.")
    slo_class: str | None = Field(None, description="Its SLO class; null for best effort.")
    allowed_slo_classes: list[str] = Field(description="Those that its requests may name beside its own.")
    weight: float = Field(description=_WEIGHT)


class KeyCreate(AdminRequest):
    name: str = Field("", max_length=100, description="What the key is for.")


class KeyBody(AdminBody):
    prefix: str = Field(description="The key's first characters, by which it is known.")
    name: str
    tenant: str
    created: datetime
    revoked: datetime | None = None


class KeyCreated(KeyBody):
    key: str = Field(description="The key itself, told this once.")


@with_fields_of(SLOClass)
class SLOClassCreate(AdminRequest):
    """A promise that tenants' requests can be given."""

    name: Name


@with_fields_of(SLOClass, may_be_none=True)
class SLOClassUpdate(AdminRequest):
    """Changes to an SLO class: only the fields that are sent; null sets a field back to its default, where it has
    one."""


@with_fields_of(SLOClass, bounded=False)
class SLOClassBody(AdminBody):
    name: str
    tenants: list[str] = Field(description="Tenants that have it.")


class SLOWindowBody(AdminBody):
    """The requests that have ended within a window."""

    requests: int
    attained: float | None = Field(description="Share that met both targets; null if there was no request.")
    budget_left: float | None = Field(
        description="Share left of the misses that the goal allows, below 0 if there were more; null for best effort."
    )


class MissBody(AdminBody):
    """A request that missed its targets, failed or was refused."""

    request_id: str
    at: datetime
    ttft_s: float | None = Field(
        description="Seconds to its first token, in its slowest choice; null if one got none."
    )
    tpot_s: float | None = Field(
        description="Mean seconds of each further token, in its slowest choice; null if there was none to wait for."
    )
    queue_s: float = Field(description="Seconds before a worker had it, while its model was there.")
    wake_s: float = Field(
        description="Seconds before a worker had it, while its model was away or on its way."
    )
    prefill_s: float | None = Field(
        description="Seconds from then to its first token, in its slowest choice, or to its end if one got none; "
        "null if no worker had it."
    )
    decode_s: float | None = Field(description="Seconds from that token to its end; null if it had none.")


class AttainmentBody(AdminBody):
    """How the requests of one tenant, in one class, to one model fared."""

    tenant: str
    slo_class: str
    model: str
    goal: float | None = Field(description="When it last had a request; null for best effort.")
    windows: dict[str, SLOWindowBody] = Field(description="By length: `1m` and `1h`.")
    misses: list[MissBody] = Field(description="The last ones, newest first, as many as asked for.")


class DeviceMemoryBody(AdminBody):
    """A device's own figures, other processes included."""

    name: str
    kind: Literal["cuda", "cpu"]
    total_bytes: int
    used_bytes: int
    free_bytes: int
    ours_bytes: int | None = Field(
        None, description="Bytes of the server's processes; null if it cannot tell."
    )
    others_bytes: int | None = None
    available_bytes: int | None = None
    stalled_share: float | None = Field(
        None, description="Share of the last ten seconds in which some process waited for memory."
    )


class DeviceBody(AdminBody):
    name: str
    budget_bytes: int
    owners: dict[str, int] = Field(description="Bytes by owner: `weights:...`, `kv:...`, `reserve`.")
    memory: DeviceMemoryBody | None = Field(None, description="Null if it cannot be read.")
    utilization: float | None = Field(
        None, description="Share of the last seconds in which it computed; null if that is not known yet."
    )
    sampled_at: int | None = Field(
        None, description="When its workers last told what they use, in Unix seconds."
    )
    segments: dict[str, dict[str, int | str]] = Field(
        description="Its bytes by owner and those that are `free`, promised and used; what is promised sums to the "
        "budget."
    )
    running: int = Field(description="Requests that run on it.")
    parked: int = Field(description="Requests whose model sleeps.")


class HistoryBody(AdminBody):
    """Figures as columns of equal length, with null where nothing was measured."""

    interval_s: float
    at: list[float] = Field(description="Unix seconds of the rows.")
    series: dict[str, list[float | None]]


class WorkerBody(AdminBody):
    worker_id: str
    pid: int | None
    device: str
    state: str
    stats: WorkerStats | None = Field(None, description="Its figures; null before it takes orders.")


class ReplicaBody(AdminBody):
    id: str
    worker: str | None
    residency: str
    reason: str
    for_s: float = Field(description="Seconds since its residency began.")
    lease_bytes: int = Field(description="Bytes that are promised to its weights.")
    num_active: int = Field(description="Requests that use it.")
    stats: ReplicaStats


class DeploymentStatusBody(AdminBody):
    name: str
    engine: str
    residency: str
    reason: str | None = None
    step_costs: StepCosts | None = Field(None, description="Seconds of its steps, as they were lately.")
    replicas: list[ReplicaBody]


class QueueShareBody(AdminBody):
    """The requests in a queue that one tenant has, of one priority, for one deployment."""

    deployment: str
    tenant: str
    priority: int
    num_in_time: int = Field(description="Those that can still begin in time.")
    num_late: int = Field(description="The others.")
    oldest_s: float = Field(description="Seconds that the first of them has waited.")


class WaitingBody(AdminBody):
    """One request that waits."""

    deployment: str
    tenant: str
    priority: int
    waited_s: float = Field(description="Seconds since it came.")
    due_in_s: float | None = Field(
        description="Seconds until its first token is due, below 0 once that is past; null if it never is."
    )
    predicted_in_s: float | None = Field(
        description="Seconds until its first token, as predicted when it came, below 0 once that is past; null if "
        "nobody could tell."
    )
    is_late: bool = Field(description="Whether it can no longer begin in time.")
    reason: WaitReason = Field(description="The first thing that it waits for.")


class QueueBody(AdminBody):
    """The queue of one device."""

    device: str
    policy: QueuePolicy = Field(description="The order in which it is served.")
    num_in_time: int = Field(description="Requests that can still begin in time.")
    num_late: int = Field(description="Requests that cannot.")
    oldest_s: float = Field(description="Seconds that the first of all has waited; 0 if nobody waits.")
    predicted_s: float | None = Field(
        description="Seconds until all that are in time have their first token; null if that of none is predicted."
    )
    jain_index: float = Field(
        description="How evenly the device has served the tenants that wait or are served, by their weights: 1 if "
        "all had the same, 1 / N if one of N had all."
    )
    shares: list[QueueShareBody] = Field(description="Who waits, by deployment, tenant and priority.")
    first: list[WaitingBody] = Field(description="The first 20, in the order in which they are served.")


class StatusBody(AdminBody):
    """The bytes that each owner holds, the place of each model, and who waits for the devices."""

    devices: list[DeviceBody]
    workers: list[WorkerBody]
    deployments: list[DeploymentStatusBody]
    queues: list[QueueBody] = Field(description="Those of the devices.")
    ledger_mismatches: int = Field(
        description="How often a worker held other bytes than the ledger says; anything but 0 is a bug."
    )


class EventDetailBody(AdminBody):
    """A decision about a residency: who goes by it, for whom, and why."""

    displaced: list[str] = Field(description="Deployments that go by it.")
    gained: list[str] = Field(description="Deployments that come by it.")
    scores: dict[str, float] = Field(
        description="Requests: those won (`gain`), lost by others (`loss`) and while weights move (`switching`), the "
        "error of the estimates (`margin`) and what is left (`net`). Empty if no weighing decided."
    )
    bytes: int = Field(description="Of the device, that this replica takes or gives up.")


class EventBody(AdminBody):
    """One decision of the memory manager, or one mishap."""

    id: int = Field(description="Grows with every event.")
    at: datetime
    kind: str
    deployment: str | None
    replica: str | None
    worker: str | None
    device: str | None
    reason: str
    figures: dict[str, int | float | str] = Field(
        description="Figures that it follows from; units in the names."
    )
    detail: EventDetailBody | None = Field(description="Null if it decides about no residency.")


class DepartureBody(AdminBody):
    """A replica that would have to leave."""

    replica_id: str
    deployment: str
    freed_bytes: int = Field(description="Weights and KV that is kept for it.")
    reason: str


class WayInBody(AdminBody):
    """The consequences of a request that came now."""

    verdict: Literal["there", "comes", "evicts", "waits", "blocked", "never"]
    message: str
    leaving: list[DepartureBody]


class WhyBody(AdminBody):
    """Why a deployment is where it is."""

    name: str
    residency: str
    reason: str | None
    num_waiting: int
    replicas: list[ReplicaBody]
    way_in: WayInBody | None = Field(description="Null if it is not served.")
    decisions: list[EventBody] = Field(description="The last ones about it, newest first.")
