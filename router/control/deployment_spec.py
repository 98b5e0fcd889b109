"""Turns a deployment of the registry into the memory manager's description of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from memory_manager.kv_spec import round_to_pages
from memory_manager.ports import ArtifactRef, DeploymentSpec
from model_registry.records import DeploymentRecord

__all__ = ["KVBytes", "deployment_spec"]

KVBytes = Callable[[Mapping[str, Any], str, int], int]
"""Bytes of KV that one sequence needs on an engine: from the configuration of a checkpoint's description, a precision
and the sequence's tokens."""


def deployment_spec(record: DeploymentRecord, artifact: ArtifactRef, kv_bytes: KVBytes) -> DeploymentSpec:
    """The memory manager's description of a deployment.

    KV for one sequence of the longest length is kept once for all models of a worker, so that every request that is
    admitted can be finished whatever else happens; what the policy guarantees is the deployment's own.
    """
    version, policy = record.variant.version, record.policy
    max_model_len = policy.max_model_len or int(version.description["max_model_len"])
    # With less, a long request would wait for ever beside models that are idle: they are not put to sleep for KV.
    # Beyond the cap nothing can be kept for it, and a request that needs more is refused.
    longest_bytes = kv_bytes(version.description["config"], record.variant.precision, max_model_len)
    if policy.kv_cap_bytes is not None:
        longest_bytes = min(longest_bytes, policy.kv_cap_bytes)
    return DeploymentSpec(
        name=record.name,
        artifact=artifact,
        weights_bytes=round_to_pages(artifact.num_bytes),
        kv_guarantee_bytes=round_to_pages(policy.kv_guarantee_bytes or 0),
        kv_longest_bytes=round_to_pages(longest_bytes),
        max_model_len=max_model_len,
        policy=policy,
    )
