"""config.json of the published models whose shapes the random ones take."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

__all__ = ["SHAPES"]

_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "use_cache": True,
}
_LLAMA_3 = _LLAMA | {
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
}
_LLAMA_3_SCALING = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

SHAPES: MappingProxyType[str, dict[str, Any]] = MappingProxyType(
    {
        "SmolLM2-135M": _LLAMA
        | {
            "bos_token_id": 1,
            "eos_token_id": 2,
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "max_position_embeddings": 8192,
            "rope_theta": 100000.0,
            "rope_scaling": None,
            "initializer_range": 0.041666666666666664,
            "tie_word_embeddings": True,
        },
        "Qwen2.5-0.5B": {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "attention_dropout": 0.0,
            "bos_token_id": 151643,
            "eos_token_id": 151643,
            "hidden_act": "silu",
            "vocab_size": 151936,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "initializer_range": 0.02,
            "max_position_embeddings": 32768,
            "max_window_layers": 24,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0,
            "sliding_window": 32768,
            "use_sliding_window": False,
            "use_mrope": False,
            "tie_word_embeddings": True,
            "use_cache": True,
        },
        "Llama-3.2-1B": _LLAMA_3
        | {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "rope_scaling": _LLAMA_3_SCALING | {"factor": 32.0},
            "tie_word_embeddings": True,
        },
        "Llama-3.1-8B": _LLAMA_3
        | {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "rope_scaling": _LLAMA_3_SCALING | {"factor": 8.0},
            "tie_word_embeddings": False,
        },
    }
)
"""The shapes by name; each is the published file's content without its dtype."""
