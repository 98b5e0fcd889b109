"""Models of real shapes with random weights, for work on speed: streamed to disk, never whole in memory."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from model_registry.progress import Progress, no_progress
from model_registry.safetensors_format import DTYPE_BYTES, encode_header
from mooring.units import GIB

__all__ = ["Precision", "tensor_shapes", "write_random_weights"]

Precision = Literal["bf16", "fp32"]

_DTYPES: dict[str, tuple[str, Any, str]] = {
    "bf16": ("BF16", np.dtype(ml_dtypes.bfloat16), "bfloat16"),
    "fp32": ("F32", np.dtype(np.float32), "float32"),
}
_CHUNK_ELEMENTS = 4 << 20
_LOGIT_STD = 2.5  # about that of trained models
_BIAS_STD = 0.1
_INDEX_NAME = "model.safetensors.index.json"

Shapes = dict[str, tuple[int, ...]]


def tensor_shapes(config: dict[str, Any]) -> Shapes:
    """Every tensor of a Llama or Qwen2 checkpoint with this config.json, in the order of the layers."""
    hidden, mlp, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    width, kv_width = heads * head_dim, config["num_key_value_heads"] * head_dim
    shapes: Shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for index in range(config["num_hidden_layers"]):
        layer: Shapes = {
            "input_layernorm.weight": (hidden,),
            "self_attn.q_proj.weight": (width, hidden),
            "self_attn.k_proj.weight": (kv_width, hidden),
            "self_attn.v_proj.weight": (kv_width, hidden),
            "self_attn.o_proj.weight": (hidden, width),
            "post_attention_layernorm.weight": (hidden,),
            "mlp.gate_proj.weight": (mlp, hidden),
            "mlp.up_proj.weight": (mlp, hidden),
            "mlp.down_proj.weight": (hidden, mlp),
        }
        if config["model_type"] == "qwen2":
            biases = {"q": width, "k": kv_width, "v": kv_width}
            layer |= {f"self_attn.{part}_proj.bias": (size,) for part, size in biases.items()}
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def write_random_weights(
    config: dict[str, Any],
    folder: Path,
    precision: Precision = "bf16",
    seed: int = 0,
    on_progress: Progress = no_progress,
    shard_bytes: int = 2 * GIB,
) -> None:
    """Writes the weights of ``config`` and config.json itself into ``folder``, an existing folder.

    Every projection keeps the scale of its input, so the layers together outweigh the embedding of the last
    token; otherwise a model with tied embeddings would greedily say that token for ever. The logits have the
    spread of a trained model's. A seed gives the same weights in both precisions, but for rounding, and
    whatever the size of the shards.

    Args:
        shard_bytes: most bytes of one file, unless a single tensor is larger.
    """
    dtype, numpy_dtype, torch_name = _DTYPES[precision]
    shapes = tensor_shapes(config)
    shards = list(_shards(shapes, DTYPE_BYTES[dtype], shard_bytes))
    total_bytes = sum(math.prod(shape) for shape in shapes.values()) * DTYPE_BYTES[dtype]
    order = {name: index for index, name in enumerate(shapes)}
    done_bytes = 0
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file_name = _shard_name(number, len(shards))
        weight_map |= dict.fromkeys(shard, file_name)
        with (folder / file_name).open("wb") as file:
            file.write(encode_header({name: (dtype, shape) for name, shape in shard.items()}))
            for name, shape in shard.items():
                random = np.random.default_rng((seed, order[name]))
                for values in _values(name, shape, random):
                    done_bytes += file.write(values.astype(numpy_dtype).tobytes())
                    on_progress("random weights", done_bytes, total_bytes)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
        (folder / _INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")
    (folder / "config.json").write_text(json.dumps(config | {"torch_dtype": torch_name}, indent=2) + "\n")


def _shards(shapes: Shapes, element_bytes: int, shard_bytes: int) -> Iterator[Shapes]:
    shard: Shapes = {}
    filled_bytes = 0
    for name, shape in shapes.items():
        num_bytes = math.prod(shape) * element_bytes
        if shard and filled_bytes + num_bytes > shard_bytes:
            yield shard
            shard, filled_bytes = {}, 0
        shard[name] = shape
        filled_bytes += num_bytes
    yield shard


def _shard_name(number: int, num_shards: int) -> str:
    return "model.safetensors" if num_shards == 1 else f"model-{number:05d}-of-{num_shards:05d}.safetensors"


def _values(name: str, shape: tuple[int, ...], random: np.random.Generator) -> Iterator[NDArray[np.float32]]:
    """The tensor's values, flat, a chunk at a time: ones for norms, else uniform about zero."""
    std = _std(name, shape)
    num_left = math.prod(shape)
    while num_left:
        size = min(num_left, _CHUNK_ELEMENTS)
        if std is None:
            yield np.ones(size, dtype=np.float32)
        else:
            values = random.random(size, dtype=np.float32)
            values -= np.float32(0.5)
            values *= np.float32(std * math.sqrt(12))
            yield values
        num_left -= size


def _std(name: str, shape: tuple[int, ...]) -> float | None:
    """The standard deviation of a tensor's values, or None for a norm."""
    if name.endswith("norm.weight"):
        return None
    if name.endswith(".bias"):
        return _BIAS_STD
    fan_in = math.sqrt(shape[1])
    if name in ("model.embed_tokens.weight", "lm_head.weight"):
        return _LOGIT_STD / fan_in
    return 1 / fan_in
