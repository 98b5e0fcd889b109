"""Turns a deployment of the registry into the memory manager's description of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from memory_manager.kv_spec import round_to_pages
from memory_manager.ports import ArtifactRef, DeploymentSpec
from model_registry.records import DeploymentRecord
from mooring.policy import DeploymentPolicy

__all__ = ["KVBytes", "deployment_spec", "spec_of"]

KVBytes = Callable[[Mapping[str, Any], str, int], int]
"""Bytes of KV that one sequence needs on an engine: from the configuration of a checkpoint's description, a precision
and the sequence's tokens."""


def deployment_spec(record: DeploymentRecord, artifact: ArtifactRef, kv_bytes: KVBytes) -> DeploymentSpec:
    """The memory manager's description of a deployment; see ``spec_of``."""
    description = record.variant.version.description
    return spec_of(
        record.name,
        artifact,
        description["config"],
        record.variant.precision,
        int(description["max_model_len"]),
        record.policy,
        kv_bytes,
        record.engine,
    )


def spec_of(
    name: str,
    artifact: ArtifactRef,
    config: Mapping[str, Any],
    precision: str,
    longest: int,
    policy: DeploymentPolicy,
    kv_bytes: KVBytes,
    engine: str,
) -> DeploymentSpec:
    """The memory manager's description of a deployment, there or not.

    KV for one sequence of the longest length is kept once for all models of a worker, so that every request that is
    admitted can be finished whatever else happens; what the policy guarantees is the deployment's own.

    Args:
        config: of the checkpoint's description.
        longest: prompt plus output of the model, in tokens; the policy may want less.
    """
    max_model_len = policy.max_model_len or longest
    # With less, a long request would wait for ever beside models that are idle: they are not put to sleep for KV.
    # Beyond the cap nothing can be kept for it, and a request that needs more is refused.
    longest_bytes = kv_bytes(config, precision, max_model_len)
    if policy.kv_cap_bytes is not None:
        longest_bytes = min(longest_bytes, policy.kv_cap_bytes)
    return DeploymentSpec(
        name=name,
        artifact=artifact,
        weights_bytes=round_to_pages(artifact.num_bytes),
        kv_guarantee_bytes=round_to_pages(policy.kv_guarantee_bytes or 0),
        kv_longest_bytes=round_to_pages(longest_bytes),
        max_model_len=max_model_len,
        policy=policy,
        engine=engine,
    )
