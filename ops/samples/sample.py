"""A sample's description, with the device memory that it will ask for."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from memory_manager.kv_spec import KVGroup, choose_block_tokens, kv_bytes_for_tokens
from model_registry.safetensors_format import read_header

__all__ = ["Sample", "describe"]

_ELEMENT_BYTES = 2  # bf16, for weights and KV alike


@dataclass(frozen=True, slots=True)
class Sample:
    """A model folder in Hugging Face's form.

    Attributes:
        name: name under which to register it.
        folder: folder of its files.
        weights_bytes: bytes of its parameters in bf16.
        kv_bytes: whole pages of bf16 KV that one sequence of ``max_model_len`` tokens needs.
        max_model_len: its context in tokens.
    """

    name: str
    folder: Path
    weights_bytes: int
    kv_bytes: int
    max_model_len: int


def describe(name: str, folder: Path) -> Sample:
    """Reads the sizes of the model in ``folder`` from its config and its weights' headers."""
    config = json.loads((folder / "config.json").read_text())
    num_parameters = sum(
        math.prod(tensor.shape)
        for path in sorted(folder.glob("*.safetensors"))
        for tensor in read_header(path).values()
    )
    num_layers, num_heads = config["num_hidden_layers"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // num_heads
    token_layer_bytes = 2 * config.get("num_key_value_heads", num_heads) * head_dim * _ELEMENT_BYTES
    group = KVGroup(
        layers=tuple(range(num_layers)),
        kind="full",
        bytes_per_token_layer=token_layer_bytes,
        block_tokens=choose_block_tokens(token_layer_bytes * num_layers),
    )
    max_model_len = config["max_position_embeddings"]
    return Sample(
        name=name,
        folder=folder,
        weights_bytes=num_parameters * _ELEMENT_BYTES,
        kv_bytes=kv_bytes_for_tokens([group], max_model_len),
        max_model_len=max_model_len,
    )
