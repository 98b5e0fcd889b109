"""Configurations read as transformers reads them, and refused by name where they cannot be run."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import transformers

from engines.checkpoint.architectures import SUPPORTED_MODEL_TYPES
from engines.checkpoint.model_config import ModelConfig, RopeConfig, kv_groups
from memory_manager.kv_spec import PAGE_BYTES
from mooring.errors import ArtifactError

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 4096,
    "intermediate_size": 96,
    "num_hidden_layers": 30,
    "num_attention_heads": 32,
}


def config_of(model_type: str = "llama", **changes: Any) -> ModelConfig:
    return ModelConfig.from_hf({**SIZES, "model_type": model_type, **changes})


@pytest.mark.parametrize("use_sliding_window", [False, True])
@pytest.mark.parametrize("model_type", SUPPORTED_MODEL_TYPES)
def test_missing_keys_mean_what_transformers_means(model_type: str, use_sliding_window: bool) -> None:
    changes = {"use_sliding_window": True} if use_sliding_window else {}
    theirs = transformers.AutoConfig.for_model(model_type, **SIZES, **changes)
    ours = config_of(model_type, **changes)
    head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    layer_types = getattr(theirs, "layer_types", None) or ["sliding_attention"] * theirs.num_hidden_layers
    window = getattr(theirs, "sliding_window", None)
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == head_dim
    assert ours.max_model_len == theirs.max_position_embeddings
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    assert ours.tied_embeddings == theirs.tie_word_embeddings
    assert ours.rope.theta == theirs.rope_parameters["rope_theta"]
    assert ours.eos_token_ids == (() if theirs.eos_token_id is None else (theirs.eos_token_id,))
    assert ours.windows == tuple(window if kind == "sliding_attention" else None for kind in layer_types)


@pytest.mark.parametrize("model_type", SUPPORTED_MODEL_TYPES)
def test_a_saved_configuration_reads_like_its_keys(model_type: str) -> None:
    theirs = transformers.AutoConfig.for_model(model_type, **SIZES, rope_theta=5e5, num_key_value_heads=4)
    saved = json.loads(json.dumps(theirs.to_dict()))
    assert "rope_theta" not in saved  # it is in rope_parameters since transformers 5
    assert ModelConfig.from_hf(saved) == config_of(model_type, rope_theta=5e5, num_key_value_heads=4)


def test_old_and_new_rope_keys_agree() -> None:
    llama3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling = {**llama3, "rope_type": "llama3", "original_max_position_embeddings": 8192}
    old = config_of(rope_theta=5e5, rope_scaling=scaling)
    new = config_of(rope_parameters={**scaling, "rope_theta": 5e5})
    assert old == new
    assert old.rope == RopeConfig("llama3", 5e5, 8.0, 1.0, 4.0, 8192)
    assert config_of(rope_scaling={"type": "linear", "factor": 2.0}).rope == RopeConfig("linear", factor=2.0)


def test_linear_scaling_extends_the_context() -> None:
    scaling = {"type": "linear", "factor": 4.0}
    assert config_of(max_position_embeddings=4096, rope_scaling=scaling).max_model_len == 16384


def test_windows_by_layer() -> None:
    kinds = ["full_attention", "sliding_attention"] * 15
    config = config_of("qwen3", use_sliding_window=True, sliding_window=7, layer_types=kinds)
    assert config.windows == (None, 7) * 15
    assert config_of("qwen2", sliding_window=7).windows == (None,) * 30
    assert config_of("mistral", sliding_window=7).windows == (7,) * 30


@pytest.mark.parametrize(
    ("config_eos", "generation_eos", "expected"),
    [(3, None, (3,)), ([3, 4], None, (3, 4)), (3, [5, 6], (5, 6)), (3, 7, (7,)), (None, None, ())],
)
def test_eos_ids_of_the_generation_config_win(
    config_eos: Any, generation_eos: Any, expected: tuple[int, ...]
) -> None:
    hf = {**SIZES, "model_type": "llama", "eos_token_id": config_eos}
    assert ModelConfig.from_hf(hf, {"eos_token_id": generation_eos}).eos_token_ids == expected


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "mamba"}, "mamba"),
        ({"model_type": None}, "model_type"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_hidden_layers": "30"}, "num_hidden_layers"),
        ({"num_key_value_heads": 5}, "num_key_value_heads"),
        ({"head_dim": 7}, "head_dim"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_scaling": {"type": "linear"}}, "factor"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_parameters": "llama3"}, "rope_parameters"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps"),
        ({"eos_token_id": "</s>"}, "eos_token_id"),
        ({"eos_token_id": [1] * 100_000}, "eos_token_id"),
        ({"eos_token_id": 1 << 31}, "eos_token_id"),
        ({"hidden_size": 1 << 40}, "hidden_size"),
        ({"num_hidden_layers": 1_000_000}, "num_hidden_layers"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps"),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps"),
        ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": "1"}, "max_window_layers"),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "layer_types": ["full_attention"]},
            "layer_types",
        ),
        ({"model_type": "qwen2", "use_sliding_window": True, "layer_types": ["linear"] * 30}, "linear"),
    ],
)
def test_what_cannot_be_run_is_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ArtifactError, match=named):
        ModelConfig.from_hf({**SIZES, "model_type": "llama", **changes})


def test_survives_the_manifest() -> None:
    config = config_of("qwen3", use_sliding_window=True, sliding_window=7, rope_theta=1e6)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ArtifactError):
        ModelConfig.from_dict({"model_type": "llama"})


def test_one_group_for_plain_attention() -> None:
    (group,) = kv_groups(config_of(num_hidden_layers=32, num_key_value_heads=8), element_bytes=2)
    assert (group.kind, group.layers, group.block_bytes) == ("full", tuple(range(32)), PAGE_BYTES)


def test_windows_have_groups_of_their_own() -> None:
    config = config_of("qwen2", use_sliding_window=True, sliding_window=64, max_window_layers=10)
    full, window = kv_groups(config, element_bytes=2)
    assert (full.kind, full.layers, full.window_tokens) == ("full", tuple(range(10)), None)
    assert (window.kind, window.layers, window.window_tokens) == ("window", tuple(range(10, 30)), 64)


def test_a_token_larger_than_a_page_splits_its_group() -> None:
    config = config_of(num_hidden_layers=300, num_key_value_heads=8)
    groups = kv_groups(config, element_bytes=4)
    assert [layer for group in groups for layer in group.layers] == list(range(300))
    assert [len(group.layers) for group in groups] == [150, 150]
    assert all(group.block_bytes <= PAGE_BYTES for group in groups)


def test_a_layer_larger_than_a_page_is_refused() -> None:
    with pytest.raises(ArtifactError, match="page"):
        kv_groups(config_of(num_key_value_heads=32, head_dim=16384), element_bytes=4)
