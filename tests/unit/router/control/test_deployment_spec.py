"""What the memory manager is told of a deployment."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.checkpoint.model_config import ModelConfig, kv_groups, sequence_kv_bytes
from memory_manager.kv_spec import PAGE_BYTES, kv_bytes_for_tokens, round_to_pages
from memory_manager.ports import ArtifactRef, DeploymentSpec
from model_registry.records import DeploymentRecord, VariantRecord, VersionRecord
from mooring.policy import DeploymentPolicy
from mooring.units import MIB
from router.control.deployment_spec import deployment_spec

MAX_MODEL_LEN = 2048
CONFIG = ModelConfig.from_hf(
    {
        "model_type": "llama",
        "vocab_size": 512,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": MAX_MODEL_LEN,
    }
)
ARTIFACT = ArtifactRef("m", Path("/m"), 20 * MIB, b"{}")
ONE_SEQUENCE_BYTES = kv_bytes_for_tokens(kv_groups(CONFIG, 4), MAX_MODEL_LEN)


def spec(policy: DeploymentPolicy) -> DeploymentSpec:
    description = {"config": CONFIG.to_dict(), "max_model_len": MAX_MODEL_LEN}
    version = VersionRecord("m", 1, "0" * 64, "/m", None, "llama", description, 20 * MIB, 0.0)
    variant = VariantRecord(1, version, "fp32", None, None)
    record = DeploymentRecord("m", variant, "torch", policy, 0.0, 0.0)
    return deployment_spec(record, ARTIFACT, sequence_kv_bytes)


@pytest.mark.parametrize("asked", [None, 0, 1, 4 * MIB, ONE_SEQUENCE_BYTES + 3 * PAGE_BYTES])
def test_what_is_guaranteed_is_what_was_asked_for_and_one_request_of_full_length_is_apart(
    asked: int | None,
) -> None:
    found = spec(DeploymentPolicy(kv_guarantee_bytes=asked))
    assert found.kv_guarantee_bytes == round_to_pages(asked or 0)
    assert found.kv_longest_bytes == ONE_SEQUENCE_BYTES


def test_a_shorter_context_needs_less() -> None:
    assert spec(DeploymentPolicy(max_model_len=16)).kv_longest_bytes == PAGE_BYTES


def test_nothing_is_kept_beyond_the_cap() -> None:
    assert spec(DeploymentPolicy(kv_cap_bytes=2 * PAGE_BYTES)).kv_longest_bytes == 2 * PAGE_BYTES
