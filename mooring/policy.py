"""How a deployment is treated: the one declaration of a policy's fields.

The registry's columns, the admin API's bodies, the command line's options and the settings' ``[[models]]`` are made
from it, and the memory manager and the doors are handed the whole object. So a new field is named here and where it
is used, and in a migration of the registry.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from mooring.declared import Bounds, Setting, broken_rule, declared
from mooring.errors import InvalidRequestError

__all__ = ["PRIORITIES", "WEIGHTS", "DeploymentPolicy", "change_policy", "check_policy"]

_MAX_INT = 2**31 - 1  # what a column and the wire hold
_MAX_BYTES = 2**63 - 1
PRIORITIES = Bounds(ge=-_MAX_INT, le=_MAX_INT)
"""The range of priorities, of deployments and of requests."""
WEIGHTS = Bounds(ge=0.001, le=1000)
"""The range of tenants' weights: wide enough, and nothing that is counted by them can overflow or vanish."""
_MAX_REPLICAS = 64  # more than there are devices in one machine


@dataclass(frozen=True, slots=True)
class DeploymentPolicy:
    """The policy of one deployment. Its values are unchecked until ``check_policy`` has looked at them."""

    enabled: Annotated[bool, Setting("Serve it at all.", off="disabled")] = True
    pinned: Annotated[bool, Setting("Never put to sleep.")] = False
    priority: Annotated[int, PRIORITIES, Setting("Higher is served first and evicted last.")] = 0
    max_model_len: Annotated[
        int | None,
        Bounds(ge=1, le=_MAX_INT),
        Setting("Longest prompt plus output, in tokens; unset: the model's own."),
    ] = None
    kv_guarantee_bytes: Annotated[
        int | None,
        Bounds(ge=0, le=_MAX_BYTES),
        Setting("KV that is this model's alone while it is resident; unset: it shares all KV."),
    ] = None
    kv_cap_bytes: Annotated[
        int | None, Bounds(ge=1, le=_MAX_BYTES), Setting("Most KV it may hold; unset: no cap.")
    ] = None
    idle_timeout_s: Annotated[
        float | None,
        Bounds(gt=0),
        Setting("Seconds without a request before it sleeps; unset: the planner's default."),
    ] = None
    min_replicas: Annotated[
        int,
        Bounds(ge=0, le=_MAX_REPLICAS),
        Setting(
            "Replicas that stay resident whether requests come or not; unless pinned they make room for other "
            "models' requests like any other, and come back once there is room."
        ),
    ] = 0
    max_replicas: Annotated[
        int, Bounds(ge=1, le=_MAX_REPLICAS), Setting("Replicas that load may bring, one on each device.")
    ] = 1
    prefix_cache: Annotated[
        Literal["tenant", "shared", "off"],
        Setting(
            "Who shares computed prefixes: requests of one tenant, all (`shared`; a tenant can then tell by the "
            "time what others sent), or none (`off`)."
        ),
    ] = "tenant"


def change_policy(policy: DeploymentPolicy, changes: Mapping[str, object]) -> DeploymentPolicy:
    """The policy with some fields replaced, checked; None puts a field back to its default.

    Raises:
        InvalidRequestError: a field that a policy does not have, or a value that it may not have.
    """
    fields = declared(DeploymentPolicy)
    for name in changes:
        if name not in fields:
            raise InvalidRequestError(f"a deployment has no setting {name!r}", param=name)
    values: dict[str, Any] = {
        name: fields[name].default if value is None else value for name, value in changes.items()
    }
    changed = dataclasses.replace(policy, **values)  # check_policy looks at every type
    check_policy(changed)
    return changed


def check_policy(policy: DeploymentPolicy) -> None:
    """Checks types as well as ranges, since values may come from JSON.

    Raises:
        InvalidRequestError: names the field.
    """
    for name, field in declared(DeploymentPolicy).items():
        if wanted := broken_rule(field, getattr(policy, name)):
            raise InvalidRequestError(f"{name} must be {wanted}", param=name)
    if policy.min_replicas > policy.max_replicas:
        raise InvalidRequestError("min_replicas exceeds max_replicas", param="min_replicas")
    if policy.kv_cap_bytes is not None and policy.kv_cap_bytes < (policy.kv_guarantee_bytes or 0):
        raise InvalidRequestError("kv_cap_bytes is below kv_guarantee_bytes", param="kv_cap_bytes")
