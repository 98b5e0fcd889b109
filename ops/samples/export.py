"""A trained decoder as an ordinary Hugging Face folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ops.samples.model import Decoder
from ops.samples.recipes import DecoderShape

__all__ = ["write_checkpoint"]


def write_checkpoint(
    decoder: Decoder, shape: DecoderShape, folder: Path, bos_id: int | None, eos_id: int
) -> None:
    """Writes model.safetensors (bf16), config.json and generation_config.json."""
    state = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in decoder.state_dict().items()}
    save_file(state, str(folder / "model.safetensors"), metadata={"format": "pt"})
    special = {"bos_token_id": bos_id, "eos_token_id": eos_id}
    _write_json(folder / "config.json", config_of(shape, decoder.lm_head.out_features) | special)
    _write_json(folder / "generation_config.json", special)


def config_of(shape: DecoderShape, vocab_size: int) -> dict[str, Any]:
    """config.json of a decoder, without its special tokens."""
    name = {"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}[shape.model_type]
    return {
        "architectures": [name],
        "model_type": shape.model_type,
        "vocab_size": vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.max_positions,
        "rope_theta": shape.rope_theta,
        "rope_scaling": None,
        "rms_norm_eps": shape.rms_norm_eps,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
