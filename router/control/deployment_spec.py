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

    The KV guarantee is at least what one sequence of the longest length needs, so that every request that is
    admitted can be finished whatever else happens.
    """
    version, policy = record.variant.version, record.policy
    max_model_len = policy.max_model_len or int(version.description["max_model_len"])
    # With a smaller guarantee, a long request would wait for ever beside models that are idle: they are not
    # put to sleep for KV. Beyond the cap nothing can be guaranteed, and a request that needs more is refused.
    longest_bytes = kv_bytes(version.description["config"], record.variant.precision, max_model_len)
    if policy.kv_cap_bytes is not None:
        longest_bytes = min(longest_bytes, policy.kv_cap_bytes)
    guarantee_bytes = max(policy.kv_guarantee_bytes or 0, longest_bytes)
    return DeploymentSpec(
        name=record.name,
        artifact=artifact,
        weights_bytes=round_to_pages(artifact.num_bytes),
        kv_guarantee_bytes=round_to_pages(guarantee_bytes),
        max_model_len=max_model_len,
        policy=policy,
    )
