"""Reads the configuration of a GGUF file into Hugging Face's names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_registry.importing.gguf_reader import GgufFile, GgufTensor
from mooring.errors import ArtifactError

__all__ = [
    "ARCHITECTURES",
    "ROPE_FACTORS",
    "WHOLE_MODEL_NAMES",
    "Architecture",
    "GgufMetadata",
    "build_config",
]

ROPE_FACTORS = "rope_freqs.weight"
WHOLE_MODEL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",  # absent if the model uses the embedding for it
}
LAYER_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
QKV_BIAS_NAMES = {f"attn_{part}.bias": f"self_attn.{part}_proj.bias" for part in "qkv"}
QK_NORM_NAMES = {f"attn_{part}_norm.weight": f"self_attn.{part}_norm.weight" for part in "qk"}


@dataclass(frozen=True, slots=True)
class Architecture:
    """The Hugging Face counterpart of one ``general.architecture``.

    Attributes:
        class_name: Hugging Face's name of the model's class.
        model_type: Hugging Face's ``model_type``.
        layer_names: every tensor of a layer, from GGUF's name to Hugging Face's; all are required.
        permuted: whether the rows of Q and K are in llama.cpp's rotary order.
    """

    class_name: str
    model_type: str
    layer_names: Mapping[str, str]
    permuted: bool = False


ARCHITECTURES = {
    "llama": Architecture("LlamaForCausalLM", "llama", LAYER_NAMES, permuted=True),
    "qwen2": Architecture("Qwen2ForCausalLM", "qwen2", LAYER_NAMES | QKV_BIAS_NAMES),
    "qwen3": Architecture("Qwen3ForCausalLM", "qwen3", LAYER_NAMES | QK_NORM_NAMES),
}


class GgufMetadata:
    """The keys and values of a GGUF file; errors name the key."""

    def __init__(self, file: GgufFile) -> None:
        self._keys = file.keys

    def get(self, key: str, default: Any = None) -> Any:
        return self._keys.get(key, default)

    def require(self, key: str) -> Any:
        """The value of a key.

        Raises:
            ArtifactError: the file lacks the key.
        """
        if key not in self._keys:
            raise ArtifactError(f"the GGUF file lacks {key}")
        return self.get(key)

    def require_int(self, key: str) -> int:
        """The value of a key that has a single whole number.

        Raises:
            ArtifactError: the key is missing or has an array (models whose layers differ are not supported).
        """
        value = self.require(key)
        if not isinstance(value, int):
            kind = "one value for each layer" if isinstance(value, list) else repr(value)
            raise ArtifactError(f"{key} has {kind} where one whole number is supported")
        return value


def build_config(metadata: GgufMetadata, tensors: Mapping[str, GgufTensor]) -> dict[str, Any]:
    """The model's config.json, in Hugging Face's names."""
    name = str(metadata.require("general.architecture"))
    if name not in ARCHITECTURES:
        raise ArtifactError(f"GGUF architecture {name!r} is not supported ({', '.join(ARCHITECTURES)} are)")
    if metadata.get(f"{name}.expert_count", 0):
        raise ArtifactError("mixture-of-experts models are not supported")
    if "token_embd.weight" not in tensors:
        raise ArtifactError("the GGUF file lacks tensor token_embd.weight")
    architecture = ARCHITECTURES[name]
    hidden = metadata.require_int(f"{name}.embedding_length")
    num_heads = metadata.require_int(f"{name}.attention.head_count")
    if num_heads < 1 or hidden < 1:
        raise ArtifactError(f"{name}.attention.head_count and {name}.embedding_length must be positive")
    config = {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
        "hidden_size": hidden,
        "intermediate_size": metadata.require_int(f"{name}.feed_forward_length"),
        "num_hidden_layers": metadata.require_int(f"{name}.block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_heads
        if metadata.get(f"{name}.attention.head_count_kv") is None
        else metadata.require_int(f"{name}.attention.head_count_kv"),
        "head_dim": _head_dim(metadata, name, hidden // num_heads),
        "hidden_act": "silu",
        "rms_norm_eps": _shortest_float32(metadata.require(f"{name}.attention.layer_norm_rms_epsilon")),
        "max_position_embeddings": metadata.require_int(f"{name}.context_length"),
        "vocab_size": int(tensors["token_embd.weight"].shape[-1]),
        "rope_theta": _shortest_float32(metadata.get(f"{name}.rope.freq_base", 10000.0)),
        "tie_word_embeddings": "output.weight" not in tensors,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }
    config["rope_scaling"] = _rope_scaling(metadata, name, config, tensors.get(ROPE_FACTORS))
    return config


def _shortest_float32(value: float) -> float:
    """The decimal number that was meant: GGUF keeps 1e-05 as float32, which reads back as
    9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _head_dim(metadata: GgufMetadata, name: str, default: int) -> int:
    head_dim = int(metadata.get(f"{name}.attention.key_length", default))
    for key in (f"{name}.attention.value_length", f"{name}.rope.dimension_count"):
        value = metadata.get(key, head_dim)
        if value != head_dim:
            raise ArtifactError(f"{key} is {value} and the head dimension {head_dim}: they must be equal")
    return head_dim


def _rope_scaling(
    metadata: GgufMetadata, name: str, config: Mapping[str, Any], factors: GgufTensor | None
) -> dict[str, Any] | None:
    kind = metadata.get(f"{name}.rope.scaling.type", "none")
    if factors is not None:
        return _llama3_scaling(np.asarray(factors.data, np.float64), config)
    if kind == "none":
        return None
    if kind == "linear":
        factor = _shortest_float32(metadata.require(f"{name}.rope.scaling.factor"))
        return {"rope_type": "linear", "factor": factor}
    raise ArtifactError(f"RoPE scaling {kind!r} is not supported (linear and llama3 are)")


def _llama3_scaling(factors: NDArray[np.float64], config: Mapping[str, Any]) -> dict[str, Any]:
    """Finds Llama 3.1's scaling parameters from the table of factors that GGUF keeps instead.

    The largest factor is ``factor``; the other parameters are the same in every published model. The table
    that they give is compared with the file's, so that a different scaling is refused and not misread.
    """
    head_dim = int(config["head_dim"])
    low, high, original = 1.0, 4.0, 8192
    factor = float(factors.max())
    wavelengths = 2 * math.pi * config["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((original / wavelengths - low) / (high - low), 0.0, 1.0)
    expected = 1.0 / ((1 - smooth) / factor + smooth)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-3):
        raise ArtifactError(f"{ROPE_FACTORS} is not Llama 3's RoPE scaling, the only one supported")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
