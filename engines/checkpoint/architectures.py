"""Turns Hugging Face configurations into the engine's normal form.

One table names the supported architectures by their ``model_type`` and says how each differs from a plain
Llama. A model type that is not in the table, or a setting that the model does not compute, is refused by
name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mooring.errors import ArtifactError

__all__ = ["SUPPORTED_MODEL_TYPES", "normal_form"]


@dataclass(frozen=True, slots=True)
class _Architecture:
    """How a ``model_type`` differs from a plain Llama, and its defaults for keys that a configuration leaves
    out.

    Attributes:
        qkv_bias: whether attention's input projections have a bias: always, never, or as the named key says.
        out_bias: the same for attention's output projection.
        mlp_bias: the same for the MLP's projections.
        qk_norm: whether queries and keys are normalized per head.
        windows: layers with a sliding window: none, all, or those that the configuration lists.
        num_kv_heads: default; None means one per query head.
        head_dim: default; None means the hidden size over the number of heads.
        max_position_embeddings: default.
        eos_token_id: default.
    """

    qkv_bias: bool | str = False
    out_bias: bool | str = False
    mlp_bias: bool | str = False
    qk_norm: bool = False
    windows: Literal["none", "all", "by_layer"] = "none"
    num_kv_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 32_768
    eos_token_id: int | None = None


_ARCHITECTURES: Mapping[str, _Architecture] = {
    "llama": _Architecture(
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        mlp_bias="mlp_bias",
        max_position_embeddings=2048,
        eos_token_id=2,
    ),
    "mistral": _Architecture(windows="all", num_kv_heads=8, max_position_embeddings=131_072, eos_token_id=2),
    "qwen2": _Architecture(qkv_bias=True, windows="by_layer", num_kv_heads=32),
    "qwen3": _Architecture(
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        qk_norm=True,
        windows="by_layer",
        num_kv_heads=32,
        head_dim=128,
    ),
}
_DEFAULT_WINDOW_TOKENS = 4096
# Larger values would only be costly to find wrong.
_MAX_INT = (1 << 31) - 1
_MAX_NUMBER = 1e30
_MAX_LAYERS = 4096
_MAX_EOS_IDS = 1024
_DEFAULT_WINDOWLESS_LAYERS = 28

SUPPORTED_MODEL_TYPES: tuple[str, ...] = tuple(sorted(_ARCHITECTURES))


def normal_form(config: Mapping[str, Any], generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ``ModelConfig`` as JSON types, with transformers' defaults for missing keys.

    Raises:
        ArtifactError: a key is missing or wrong, or something is not supported; the message names it.
    """
    model_type = config.get("model_type")
    architecture = _ARCHITECTURES.get(model_type) if isinstance(model_type, str) else None
    if architecture is None:
        supported = ", ".join(SUPPORTED_MODEL_TYPES)
        raise ArtifactError(f"model_type {model_type!r} is not supported; supported are {supported}")
    _refuse_unsupported(config)
    num_heads = _positive_int(config, "num_attention_heads")
    hidden_size = _positive_int(config, "hidden_size")
    num_layers = _positive_int(config, "num_hidden_layers")
    if num_layers > _MAX_LAYERS:
        raise ArtifactError(f"num_hidden_layers {num_layers}: at most {_MAX_LAYERS} are supported")
    num_kv_heads = _kv_heads(config, architecture, num_heads)
    rope = _rope(config, architecture)
    return {
        "model_type": model_type,
        "vocab_size": _positive_int(config, "vocab_size"),
        "hidden_size": hidden_size,
        "intermediate_size": _positive_int(config, "intermediate_size"),
        "num_layers": num_layers,
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "head_dim": _head_dim(config, architecture, hidden_size, num_heads),
        "rms_norm_eps": _number(config, "rms_norm_eps", 1e-6),
        "max_model_len": _max_model_len(config, architecture, rope),
        "tied_embeddings": config.get("tie_word_embeddings") is True,
        "qkv_bias": _flag(config, architecture.qkv_bias),
        "out_bias": _flag(config, architecture.out_bias),
        "mlp_bias": _flag(config, architecture.mlp_bias),
        "qk_norm": architecture.qk_norm,
        "windows": _windows(config, architecture, num_layers),
        "eos_token_ids": _eos_token_ids(config, architecture, generation_config),
        "rope": rope,
    }


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    if config.get("quantization_config"):
        raise ArtifactError("quantization_config: quantized checkpoints are not supported")
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ArtifactError(f"hidden_act {activation!r} is not supported; only silu is")


def _kv_heads(config: Mapping[str, Any], architecture: _Architecture, num_heads: int) -> int:
    if "num_key_value_heads" in config:
        num_kv_heads = _positive_int(config, "num_key_value_heads", num_heads)
    else:
        num_kv_heads = architecture.num_kv_heads or num_heads
    if num_heads % num_kv_heads:
        raise ArtifactError(
            f"num_attention_heads {num_heads} is not a multiple of num_key_value_heads {num_kv_heads}"
        )
    return num_kv_heads


def _head_dim(
    config: Mapping[str, Any], architecture: _Architecture, hidden_size: int, num_heads: int
) -> int:
    derived = hidden_size // num_heads
    if "head_dim" in config:
        head_dim = _positive_int(config, "head_dim", derived)
    else:
        head_dim = architecture.head_dim or derived
    if head_dim % 2:
        raise ArtifactError(f"head_dim {head_dim} is odd, which a rotary embedding cannot be")
    return head_dim


def _rope(config: Mapping[str, Any], architecture: _Architecture) -> dict[str, Any]:
    """The rotary embedding's fields. transformers 5 writes ``rope_parameters``; earlier releases write
    ``rope_theta`` and ``rope_scaling``."""
    raw = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(raw, Mapping):
        raise ArtifactError("rope_parameters is not an object")
    kind = raw.get("rope_type", raw.get("type", "default"))
    if kind not in ("default", "linear", "llama3"):
        raise ArtifactError(f"rope_type {kind!r} is not supported; default, linear and llama3 are")
    partial = raw.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise ArtifactError(f"partial_rotary_factor {partial!r} is not supported; only 1 is")
    theta = raw if "rope_theta" in raw else config
    rope: dict[str, Any] = {"kind": kind, "theta": _number(theta, "rope_theta", 10_000.0)}
    if kind != "default":
        rope["factor"] = _number(raw, "factor")
    if kind == "llama3":
        rope["low_freq_factor"] = _number(raw, "low_freq_factor")
        rope["high_freq_factor"] = _number(raw, "high_freq_factor")
        trained_tokens = _positive_int(
            config, "max_position_embeddings", architecture.max_position_embeddings
        )
        rope["original_max_tokens"] = _positive_int(raw, "original_max_position_embeddings", trained_tokens)
    return rope


def _max_model_len(config: Mapping[str, Any], architecture: _Architecture, rope: Mapping[str, Any]) -> int:
    positions = _positive_int(config, "max_position_embeddings", architecture.max_position_embeddings)
    # Linear scaling squeezes more tokens into the positions that the model knows (Chen et al., Position
    # Interpolation, 2023); llama3 configurations already give the extended length.
    return int(positions * rope["factor"]) if rope["kind"] == "linear" else positions


def _windows(config: Mapping[str, Any], architecture: _Architecture, num_layers: int) -> list[int | None]:
    if architecture.windows == "none" or config.get("sliding_window", _DEFAULT_WINDOW_TOKENS) is None:
        return [None] * num_layers
    window = _positive_int(config, "sliding_window", _DEFAULT_WINDOW_TOKENS)
    if architecture.windows == "all":
        return [window] * num_layers
    if not config.get("use_sliding_window", False):
        return [None] * num_layers
    layer_types = config.get("layer_types")
    if layer_types is None:
        first = config.get("max_window_layers", _DEFAULT_WINDOWLESS_LAYERS)
        if not isinstance(first, int):
            raise ArtifactError(f"max_window_layers {first!r} is not a number of layers")
        return [window if layer >= first else None for layer in range(num_layers)]
    if not isinstance(layer_types, list) or len(layer_types) != num_layers:
        raise ArtifactError(f"layer_types does not name {num_layers} layers")
    known = {"full_attention": None, "sliding_attention": window}
    unknown = sorted({str(kind) for kind in layer_types} - known.keys())
    if unknown:
        raise ArtifactError(f"layer_types {', '.join(unknown)} are not supported")
    return [known[kind] for kind in layer_types]


def _eos_token_ids(
    config: Mapping[str, Any], architecture: _Architecture, generation_config: Mapping[str, Any]
) -> list[int]:
    raw = generation_config.get("eos_token_id")
    if raw is None:
        raw = config.get("eos_token_id", architecture.eos_token_id)
    ids = [] if raw is None else raw if isinstance(raw, list) else [raw]
    if len(ids) > _MAX_EOS_IDS or not all(isinstance(each, int) and 0 <= each <= _MAX_INT for each in ids):
        raise ArtifactError(f"eos_token_id {raw!r} is not a token id or a list of some")
    return ids


def _positive_int(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise ArtifactError(f"config.json lacks {key}")
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= _MAX_INT:
        raise ArtifactError(f"{key} {value!r} is not a positive whole number, or too large")
    return value


def _number(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise ArtifactError(f"config.json lacks {key}")
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < _MAX_NUMBER:
        raise ArtifactError(f"{key} {value!r} is not a positive number, or too large")
    return float(value)


def _flag(config: Mapping[str, Any], rule: bool | str) -> bool:
    return rule if isinstance(rule, bool) else bool(config.get(rule, False))
