"""A whole checkpoint of a few kilobytes, made without torch, for servers that run the null engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from support.router_doors import byte_level_tokenizer, write_model_folder

__all__ = ["MAX_MODEL_LEN", "NULL_ENVIRONMENT", "write_checkpoint"]

MAX_MODEL_LEN = 512
HIDDEN = 8
# Printable ASCII in ``byte_level_tokenizer``'s vocabulary, so that the null engine's answers are text.
NULL_ENVIRONMENT = {"MOORING_NULL__FIRST_TOKEN_ID": "0", "MOORING_NULL__NUM_TOKEN_IDS": "90"}


def write_checkpoint(
    folder: Path, seed: int = 0, *, architecture: str = "Llama", dtype: type[np.floating[Any]] = np.float32
) -> Path:
    """A checkpoint of one layer. Another seed is another artifact."""
    tokenizer = byte_level_tokenizer()
    write_model_folder(folder, tokenizer)
    vocab_size = tokenizer.get_vocab_size()
    config = {
        "architectures": [f"{architecture}ForCausalLM"],
        "model_type": architecture.lower(),
        "vocab_size": vocab_size,
        "hidden_size": HIDDEN,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "max_position_embeddings": MAX_MODEL_LEN,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "torch_dtype": "float32",
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
    }
    (folder / "config.json").write_text(json.dumps(config))
    layer = "model.layers.0."
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab_size, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        layer + "input_layernorm.weight": (HIDDEN,),
        layer + "post_attention_layernorm.weight": (HIDDEN,),
    }
    for name in ("q", "k", "v", "o"):
        shapes[f"{layer}self_attn.{name}_proj.weight"] = (HIDDEN, HIDDEN)
    for name in ("gate", "up", "down"):
        shapes[f"{layer}mlp.{name}_proj.weight"] = (HIDDEN, HIDDEN)
    random = np.random.default_rng(seed)
    weights = {
        name: random.standard_normal(shape, np.float32).astype(dtype) for name, shape in shapes.items()
    }
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder
