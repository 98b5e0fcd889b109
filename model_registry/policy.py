"""What a deployment's policy may be; each refusal names the field."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, TypeGuard

from model_registry.records import DeploymentPolicy
from mooring.errors import InvalidRequestError

__all__ = ["change_policy", "check_name", "check_policy"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
POLICY_FIELDS = tuple(field.name for field in dataclasses.fields(DeploymentPolicy))
FLAGS = ("enabled", "pinned")
WHOLE_NUMBERS = {  # least value; None is no bound
    "priority": None,
    "min_replicas": 0,
    "max_replicas": 1,
}
OPTIONAL_WHOLE_NUMBERS = {"kv_guarantee_bytes": 0, "kv_cap_bytes": 1, "max_model_len": 1}
CHOICES = {"prefix_cache": ("tenant", "shared", "off")}
MAX_PRIORITY = 2**31 - 1  # what the column and the wire hold
MAX_BYTES = 2**63 - 1


def check_name(name: str, param: str = "name") -> None:
    """Refuses names that could not stand as they are in a URL, a metric's label or a shell line.

    Raises:
        InvalidRequestError: with the rule.
    """
    if not NAME.fullmatch(name):
        raise InvalidRequestError(
            f"{name!r} is not a name: 1 to 128 letters, digits and . _ : / - after a letter or digit",
            param=param,
        )


def change_policy(policy: DeploymentPolicy, changes: Mapping[str, object]) -> DeploymentPolicy:
    """The policy with some fields replaced, checked; None puts a field back to its default.

    Raises:
        InvalidRequestError: a field that a policy does not have, or a value that it may not have.
    """
    for name in changes:
        if name not in POLICY_FIELDS:
            raise InvalidRequestError(f"a deployment has no setting {name!r}", param=name)
    defaults = DeploymentPolicy()
    values: dict[str, Any] = {
        name: getattr(defaults, name) if value is None else value for name, value in changes.items()
    }
    changed = dataclasses.replace(policy, **values)  # check_policy looks at every type
    check_policy(changed)
    return changed


def check_policy(policy: DeploymentPolicy) -> None:
    """Checks types as well as ranges, since values may come from JSON.

    Raises:
        InvalidRequestError: names the field.
    """
    for name in FLAGS:
        if not isinstance(getattr(policy, name), bool):
            raise InvalidRequestError(f"{name} must be true or false", param=name)
    for name, least in WHOLE_NUMBERS.items():
        _check_whole(name, getattr(policy, name), least, MAX_PRIORITY)
    for name, least in OPTIONAL_WHOLE_NUMBERS.items():
        if (value := getattr(policy, name)) is not None:
            _check_whole(name, value, least, MAX_PRIORITY if name == "max_model_len" else MAX_BYTES)
    for name, choices in CHOICES.items():
        if getattr(policy, name) not in choices:
            raise InvalidRequestError(f"{name} must be one of {', '.join(choices)}", param=name)
    idle: object = policy.idle_timeout_s
    if idle is not None and not (_is_number(idle) and math.isfinite(idle) and idle > 0):
        raise InvalidRequestError(
            "idle_timeout_s must be a number of seconds above 0", param="idle_timeout_s"
        )
    if policy.min_replicas > policy.max_replicas:
        raise InvalidRequestError("min_replicas exceeds max_replicas", param="min_replicas")
    if policy.kv_cap_bytes is not None and policy.kv_cap_bytes < (policy.kv_guarantee_bytes or 0):
        raise InvalidRequestError("kv_cap_bytes is below kv_guarantee_bytes", param="kv_cap_bytes")


def _check_whole(name: str, value: object, least: int | None, most: int) -> None:
    least = -most if least is None else least
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InvalidRequestError(f"{name} must be a whole number from {least} to {most}", param=name)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
