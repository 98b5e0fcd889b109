"""Deployments as the planner sees them, with fields of the policy and of the view given side by side."""

from __future__ import annotations

import dataclasses
from typing import Any

from memory_manager.policy.plan_types import DeploymentView
from mooring.policy import DeploymentPolicy

_POLICY_FIELDS = {field.name for field in dataclasses.fields(DeploymentPolicy)}


def deployment_view(name: str, weights_bytes: int, kv_guarantee_bytes: int, **values: Any) -> DeploymentView:
    """A view whose ``values`` are fields of ``DeploymentPolicy`` or of ``DeploymentView``."""
    policy = {key: values.pop(key) for key in _POLICY_FIELDS & values.keys()}
    return DeploymentView(name, weights_bytes, kv_guarantee_bytes, DeploymentPolicy(**policy), **values)
